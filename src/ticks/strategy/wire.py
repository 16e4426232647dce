"""Wires: how numbers are encoded while they travel, and how many bytes that is.

`FP32` all-reduces. An encoding cannot be added up on its way, so the others exchange point to point in two halves, in
their own width. With E and D for encode and decode, n healthy workers, chunk j of worker i's numbers x_ij, and what
earlier exchanges still owe, e_ij and o_j:

    i -> j     E(x_ij + e_ij)                                  e_ij <- what E lost of it
    j          m_j = o_j + 1/n sum_i D(E(x_ij + e_ij))         o_j  <- what E lost of m_j; its own x_jj is not encoded
    j -> all   E(m_j), and everybody, j too, goes on with D(E(m_j))

Error feedback in both halves: what is lost comes later (arXiv 1901.09847, 1905.05957). Sums are fp32, in the order of
the ranks. To add a wire: a class here (a subclass of `Encoded` needs `size`, `encode`, `decode`), and a YAML in
configs/strategy/wire/.

Every message begins with what it means and this worker's facts (`Told`), in as many bytes whatever follows. Numbers
leave only where all mean the same, so that messages of different meaning or size never meet.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from ticks.arguments import ArgumentError

PARTS = 4  # of an fp32 message that travel at a time
PIECE = 1 << 17  # numbers: what is encoded at a time; all passes over it find it in the cache


@dataclass
class Received:
    """What one exchange brought besides the mean: everyone's facts by rank in the group; the bytes this worker sent."""

    rows_NxF: Tensor
    n_bytes: int


class OutOfStep(RuntimeError):
    """Workers were about to mix messages that do not belong together; raised on every worker that met the others."""


def meaning(numbers_P: Tensor, exact: int, channel: str, step: int) -> str:
    """What must be equal on all workers of a message, as they are told it where it is not."""
    size = f"{len(numbers_P)} numbers" + (f", {exact} of them exact" if exact else "")
    return f"{channel or 'numbers'} after step {step}, {size}, {str(numbers_P.dtype).removeprefix('torch.')}"


class Told:
    """What every worker of the group means by its next message, and its facts (F,): one exchange of small rows.

    Numbers are posted only when it has come back, a latency later: gloo ends the process where sizes differ. It is part
    of a tick's one message, whose facts are gathered so anyway; where numbers are encoded, it adds one latency.
    """

    def __init__(
        self, facts_F: Tensor, meaning: str, *, device: torch.device, group: ProcessGroup | None = None, note: str = ""
    ) -> None:
        self.meaning, self.note, self.group = meaning, note, group
        number = float(int.from_bytes(blake2b(meaning.encode(), digest_size=6).digest()))  # exact as a float64
        row = torch.cat([torch.tensor([number], dtype=torch.float64), facts_F.to("cpu", torch.float64)]).to(device)
        n = dist.get_world_size(group)
        self.n_bytes = (n - 1) * row.nbytes
        self._rows = row.repeat(n, 1)
        self._work = dist.all_gather(list(self._rows), row, group=group, async_op=True) if n > 1 else None

    def done(self) -> bool:
        return self._work is None or self._work.is_completed()

    def rows(self) -> Tensor:
        """Everybody's facts (N, F), by rank. OutOfStep, on all, if they do not mean the same."""
        if self._work is not None:
            self._work.wait()
        rows_NxF = self._rows.cpu()
        if (rows_NxF[:, 0] != rows_NxF[0, 0]).any():
            self._explain()
        return rows_NxF[:, 1:]

    def _explain(self) -> None:
        """All know that they differ: now they tell each other how."""
        meanings: list[Any] = [None] * len(self._rows)
        dist.all_gather_object(meanings, self.meaning + self.note, group=self.group)
        raise out_of_step(dict(zip(dist.get_process_group_ranks(self.group), meanings, strict=True)))


def out_of_step(meanings: dict[int, str]) -> OutOfStep:
    """The error, of what each worker was about to do."""
    by_meaning: dict[str, list[str]] = {}
    for rank, meaning in meanings.items():
        by_meaning.setdefault(meaning, []).append(str(rank))
    told = "; ".join(f"worker {', '.join(ranks)}: {meaning}" for meaning, ranks in by_meaning.items())
    return OutOfStep(
        f"workers no longer do the same ({told}). Where one's data end before another's, give as many batches to each,"
        " or data without an end, and max_steps to the Trainer"
    )


@dataclass(frozen=True)
class Matrix:
    """Where a matrix lies in a flat tensor, row after row."""

    start: int
    rows: int
    columns: int

    def view(self, numbers_P: Tensor) -> Tensor:
        return numbers_P[self.start : self.start + self.rows * self.columns].view(self.rows, self.columns)


class Wire(ABC):
    """An exchange over a process group. `lossy` wires are given small differences only, never parameters."""

    lossy = False

    @abstractmethod
    def mean(
        self,
        numbers_P: Tensor,
        facts_F: Tensor,
        *,
        exact: int = 0,
        channel: str = "",
        step: int = 0,
        group: ProcessGroup | None = None,
        matrices: Sequence[Matrix] = (),
    ) -> Received:
        """Replace `numbers_P` (P,), float32 or float64, by its mean over the group's workers, bit-identical on all.

        `facts_F` (F,), float64, are given to all workers as they are. Fact 0 is the worker's weight, 1 or 0: with 0 its
        numbers count for nobody (they may be nan) though it gets the mean; if all weights are 0, numbers stay as they
        are. The last `exact` numbers travel unencoded. `channel` names what is sent: memory and error feedback are kept
        per channel. OutOfStep, on all, unless all send as many numbers on one channel after one `step`. `matrices`:
        those among the numbers, in their order, for wires that make use of it. A background thread
        may call this at the same time, for another channel and with another group.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the wire must remember to resume exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - an exact wire remembers nothing
        """Take back what `state_dict` gave."""

    def reset(self) -> None:  # noqa: B027
        """Forget what is owed."""

    def settle(self, channel: str, group: ProcessGroup | None = None) -> Tensor | None:
        """What was lost of this channel's last numbers, as this worker could add it to its next; it is forgotten here.

        (P,), without the exact numbers. None if nothing is owed.
        """
        return None


class FP32(Wire):
    """Numbers as they are (float64 stays float64): a few parts at once, each divided while the others travel.

    On a ring each worker sends 2 (n - 1) / n times the payload, and that is what is counted. A bare all-reduce of the
    same 10.8M numbers, which does not divide, takes nearly as long: this takes 1.1x of its time for 2 and for 4 gloo
    workers on 2 cores; point to point as the other wires do, but in fp32, it was 1.1x to 1.2x.
    """

    @torch.no_grad()
    def mean(
        self,
        numbers_P: Tensor,
        facts_F: Tensor,
        *,
        exact: int = 0,
        channel: str = "",
        step: int = 0,
        group: ProcessGroup | None = None,
        matrices: Sequence[Matrix] = (),
    ) -> Received:
        n = dist.get_world_size(group)
        told = Told(facts_F, meaning(numbers_P, exact, channel, step), device=numbers_P.device, group=group)
        rows_NxF = told.rows()
        n_healthy = len(healthy_ranks(rows_NxF))
        if n == 1 or not n_healthy or not len(numbers_P):
            return Received(rows_NxF, told.n_bytes)
        if facts_F[0] != 1:
            numbers_P.zero_()
        parts = numbers_P.chunk(PARTS if len(numbers_P) >= PARTS * PIECE else 1)
        sums = [dist.all_reduce(part, group=group, async_op=True) for part in parts]
        for part, total in zip(parts, sums, strict=True):
            total.wait()
            part.div_(n_healthy)
        return Received(rows_NxF, told.n_bytes + ring_bytes(numbers_P.nbytes, n))


@dataclass
class Chunk:
    """What one worker reduces: encoded numbers, exact numbers, and what the encoding still owes of the first."""

    body: Tensor
    tail: Tensor
    owed: Tensor | None


class Encoded(Wire):
    """A wire with an encoding of its own: a subclass says how many bytes, and how there and back.

    float64 is rounded to fp32 first. With `error_feedback` a residual is remembered: 4 bytes per number, per channel.
    A worker of weight 0 forgets what it owes of its own numbers. A non-finite number that does count makes the
    numbers of its block non-finite, on all workers.
    """

    lossy = True
    block = 1  # numbers that are encoded together; a divisor of PIECE

    def __init__(self, *, error_feedback: bool = True) -> None:
        self.error_feedback = error_feedback
        self._residuals: dict[str, Tensor] = {}
        self._memory: dict[tuple[str, str], Tensor] = {}

    @abstractmethod
    def size(self, n: int) -> int:
        """Bytes of `n` encoded numbers, n a multiple of `block`; for PIECE numbers a multiple of 4."""

    @abstractmethod
    def encode(self, numbers_P: Tensor, bytes_B: Tensor) -> None:
        """Write `numbers_P` (P,), fp32, at most a PIECE of whole blocks, to `bytes_B` (size(P),), uint8."""

    @abstractmethod
    def decode(self, bytes_B: Tensor, numbers_P: Tensor) -> None:
        """The way back, the same on every worker: fill `numbers_P`."""

    @torch.no_grad()
    def mean(
        self,
        numbers_P: Tensor,
        facts_F: Tensor,
        *,
        exact: int = 0,
        channel: str = "",
        step: int = 0,
        group: ProcessGroup | None = None,
        matrices: Sequence[Matrix] = (),
    ) -> Received:
        peers = Peers(group)
        if peers.n == 1:
            return Received(facts_F.to("cpu", torch.float64, copy=True)[None], 0)
        told = Told(facts_F, meaning(numbers_P, exact, channel, step), device=numbers_P.device, group=group)
        chunks = self._chunks(numbers_P, exact, channel, peers.n)
        own = chunks[peers.rank]
        rows_NxF = told.rows()
        healthy = healthy_ranks(rows_NxF)

        def memory(name: str, chunk: Chunk) -> Tensor:
            return self._bytes((channel, name), chunk.tail.nbytes + self._size(len(chunk.body)), numbers_P.device)

        inbox = {source: memory(f"from {source}", own) for source in peers.before if source in healthy}
        peers.receive(inbox)
        for to in peers.after:  # one travels while the next is encoded
            if peers.rank in healthy:
                message = memory(f"to {to}", chunks[to])
                self._pack(chunks[to], message)
                peers.send(to, message)
            elif (owed := chunks[to].owed) is not None:
                owed.zero_()
        peers.wait()

        if healthy:
            answers = {source: memory(f"answer of {source}", chunks[source]) for source in peers.before}
            peers.receive(answers)
            answer = memory("answer", own)
            self._reduce(own, [inbox.get(rank) for rank in healthy], answer)
            for to in peers.after:
                peers.send(to, answer)
            peers.wait()
            for source, message in answers.items():
                self._unpack(message, chunks[source])
        return Received(rows_NxF, told.n_bytes + peers.n_bytes)

    def _chunks(self, numbers_P: Tensor, exact: int, channel: str, n: int) -> list[Chunk]:
        n_encoded = len(numbers_P) - exact
        bodies, tails = split(numbers_P[:n_encoded], n, self.block), split(numbers_P[n_encoded:], n, 1)
        if not self.error_feedback:
            return [Chunk(body, tail, None) for body, tail in zip(bodies, tails, strict=True)]
        residual = self._residuals.get(channel)
        if residual is None or len(residual) != n_encoded:  # other parameters train than before
            residual = torch.zeros(n_encoded)
        self._residuals[channel] = residual = residual.to(numbers_P.device)
        return [Chunk(*parts) for parts in zip(bodies, tails, split(residual, n, self.block), strict=True)]

    def _pack(self, chunk: Chunk, message: Tensor) -> None:
        """The chunk, and what is owed of it, into the message; what the encoding loses is owed from now on."""
        message[: chunk.tail.nbytes].view(chunk.tail.dtype).copy_(chunk.tail)
        for at, where, x, y in self._pieces(chunk):
            if chunk.owed is None:
                x[: len(chunk.body[at])].copy_(chunk.body[at])
            else:
                torch.add(chunk.body[at], chunk.owed[at], out=x[: len(chunk.body[at])])
            self.encode(x, message[where])
            if chunk.owed is not None:
                self.decode(message[where], y)
                torch.sub(x[: len(chunk.body[at])], y[: len(chunk.body[at])], out=chunk.owed[at])

    def _reduce(self, own: Chunk, messages: Sequence[Tensor | None], answer: Tensor) -> None:
        """The worker's own chunk, None among the messages, becomes the mean as everybody will decode it."""
        size, dtype = own.tail.nbytes, own.tail.dtype
        average([own.tail if message is None else message[:size].view(dtype) for message in messages], own.tail)
        answer[:size].view(dtype).copy_(own.tail)
        for at, where, x, y in self._pieces(own):
            n = len(own.body[at])
            for i, message in enumerate(messages):
                term = y if i else x
                if message is None:
                    term[:n].copy_(own.body[at])
                else:
                    self.decode(message[where], term)
                if i:
                    x[:n].add_(y[:n])
            x.div_(len(messages))
            if own.owed is not None:
                x[:n].add_(own.owed[at])
            self.encode(x, answer[where])
            self.decode(answer[where], y)
            if own.owed is not None:
                torch.sub(x[:n], y[:n], out=own.owed[at])
            own.body[at].copy_(y[:n])

    def _unpack(self, message: Tensor, chunk: Chunk) -> None:
        chunk.tail.copy_(message[: chunk.tail.nbytes].view(chunk.tail.dtype))
        for at, where, x, _ in self._pieces(chunk):
            self.decode(message[where], x)
            chunk.body[at].copy_(x[: len(chunk.body[at])])

    def _pieces(self, chunk: Chunk) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Where a piece lies in the chunk, and its code in a message; twice memory for whole blocks, the first 0
        beyond the piece."""
        x, y = torch.empty(2, PIECE, device=chunk.body.device)
        end = chunk.tail.nbytes
        for start in range(0, len(chunk.body), PIECE):
            stop = min(start + PIECE, len(chunk.body))
            begin, end = end, end + self._size(stop - start)
            padded = -(-(stop - start) // self.block) * self.block
            x[stop - start : padded].zero_()
            yield slice(start, stop), slice(begin, end), x[:padded], y[:padded]

    def _size(self, n: int) -> int:
        return self.size(-(-n // self.block) * self.block)

    def _bytes(self, key: tuple[str, str], n_bytes: int, device: torch.device) -> Tensor:
        memory = self._memory.get(key)
        if memory is None or len(memory) != n_bytes or memory.device != device:
            memory = self._memory[key] = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
        return memory

    def settle(self, channel: str, group: ProcessGroup | None = None) -> Tensor | None:
        owed = self._residuals.pop(channel, None)
        if owed is not None:
            peers = Peers(group)
            split(owed, peers.n, self.block)[peers.rank].mul_(peers.n)  # of the mean, and no other worker owes it
        return owed

    def state_dict(self) -> dict[str, Any]:
        return {channel: residual.clone() for channel, residual in self._residuals.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._residuals = {channel: residual.clone() for channel, residual in state.items()}

    def reset(self) -> None:
        self._residuals = {}


class BF16(Encoded):
    """bfloat16: half the bytes, fp32's range, 8 bits of precision."""

    def size(self, n: int) -> int:
        return 2 * n

    def encode(self, numbers_P: Tensor, bytes_B: Tensor) -> None:
        bytes_B.view(torch.bfloat16).copy_(numbers_P)

    def decode(self, bytes_B: Tensor, numbers_P: Tensor) -> None:
        numbers_P.copy_(bytes_B.view(torch.bfloat16))


class FP16(Encoded):
    """float16: half the bytes, 11 bits of precision; beyond 65504 it saturates, and the rest comes later."""

    def size(self, n: int) -> int:
        return 2 * n

    def encode(self, numbers_P: Tensor, bytes_B: Tensor) -> None:
        bytes_B.view(torch.float16).copy_(numbers_P.clamp(-65504, 65504))

    def decode(self, bytes_B: Tensor, numbers_P: Tensor) -> None:
        numbers_P.copy_(bytes_B.view(torch.float16))


class Scaled(Encoded):
    """Small whole numbers times an fp32 scale per block, so that the block's largest magnitude becomes `largest`."""

    largest: float

    def __init__(self, block: int, *, error_feedback: bool = True) -> None:
        if block not in (powers := [2**k for k in range(3, 15)]):
            raise ArgumentError("block", block, f"must be a power of 2 from {powers[0]} to {powers[-1]}")
        self.block = block
        super().__init__(error_feedback=error_feedback)

    def _parts(self, bytes_B: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Scales (blocks, 1), fp32, and codes, int8, of n numbers."""
        n_blocks = n // self.block
        return bytes_B[: 4 * n_blocks].view(torch.float32).view(n_blocks, 1), bytes_B[4 * n_blocks :].view(torch.int8)

    def _scaled(self, numbers_P: Tensor, scales: Tensor) -> Tensor:
        """A copy of the numbers over their block's scale, within -largest..largest; the scales are written."""
        blocks = numbers_P.view(-1, self.block)
        copy = blocks.abs()
        torch.amax(copy, 1, keepdim=True, out=scales)
        scales.clamp_(min=1e-30).div_(self.largest)
        return torch.div(blocks, scales, out=copy).view(-1)


class Int8(Scaled):
    """-127..127 times a scale per block of `block` numbers: 0.254 of fp32's bytes.

    Mean squared error over mean square: Gaussian 5e-5, product of two Gaussians 1.4e-4. Encoding 10.8M numbers takes
    10 ms, decoding 3 ms, on one thread.
    """

    largest = 127

    def __init__(self, block: int = 256, *, error_feedback: bool = True) -> None:
        super().__init__(block, error_feedback=error_feedback)

    def size(self, n: int) -> int:
        return n + 4 * (n // self.block)

    def encode(self, numbers_P: Tensor, bytes_B: Tensor) -> None:
        scales, codes = self._parts(bytes_B, len(numbers_P))
        codes.copy_(self._scaled(numbers_P, scales).round_())

    def decode(self, bytes_B: Tensor, numbers_P: Tensor) -> None:
        scales, codes = self._parts(bytes_B, len(numbers_P))
        torch.mul(codes.view(-1, self.block), scales, out=numbers_P.view(-1, self.block))


class Int4(Scaled):
    """0, 1, 2, 3, 4, 6, 8, 12 and their negatives times a scale per block of `block` numbers: 0.141 of fp32's bytes.

    They are twice the values of the 4-bit float E2M1 (arXiv 2310.10537), which lie close where most numbers do. Mean
    squared error over mean square, and of whole numbers -7..7 in its place, in blocks of 64: Gaussian 0.0112 (0.0116),
    product of two Gaussians 0.0135 (0.0228), Student's t with 3 degrees 0.0160 (0.0332), pseudo-gradients of a small
    transformer under AdamW 0.0114 (0.0123), but 0.0113 (0.0086) in its first steps, when all numbers are near the
    learning rate. Encoding 10.8M numbers takes 23 ms (14), decoding 8 ms (6), on one thread.
    """

    largest = 12

    def __init__(self, block: int = 64, *, error_feedback: bool = True) -> None:
        super().__init__(block, error_feedback=error_feedback)

    def size(self, n: int) -> int:
        return n // 2 + 4 * (n // self.block)

    def encode(self, numbers_P: Tensor, bytes_B: Tensor) -> None:
        """Code -7..7 of value v is v/4 + clamp(v, +-8)/4 + clamp(v, +-4)/2, rounded: slopes 1, 1/2, 1/4."""
        scales, packed = self._parts(bytes_B, len(numbers_P))
        values = self._scaled(numbers_P, scales)
        codes = values.clamp(-4, 4).mul_(2).add_(values.clamp(-8, 8)).add_(values).mul_(0.25).round_().to(torch.int8)
        first, second = codes.chunk(2)
        torch.bitwise_or(first.bitwise_and_(15), second.bitwise_left_shift_(4), out=packed)

    def decode(self, bytes_B: Tensor, numbers_P: Tensor) -> None:
        scales, packed = self._parts(bytes_B, len(numbers_P))
        codes = torch.cat([(packed << 4) >> 4, packed >> 4])  # the sign comes along
        values = (4 * codes).sub_(codes.clamp(-4, 4)).sub_(codes.clamp_(-6, 6), alpha=2)
        torch.mul(values.view(-1, self.block), scales, out=numbers_P.view(-1, self.block))


class Peers:
    """The other workers of a group, by their rank in it, and the bytes sent to them so far.

    Gloo fills both directions of a connection only if each side asks for what it will receive before it sends: a
    message the other way meanwhile takes the time of both (measured at 100 Mbit/s). So `receive` first, then `send`.
    Other backends (NCCL) get all of it at once in `wait`: they may not choose an order of their own.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group if group is not None else dist.group.WORLD
        self.n, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        self.after = [(self.rank + k) % self.n for k in range(1, self.n)]
        self.before = [(self.rank - k) % self.n for k in range(1, self.n)]
        self.n_bytes = 0
        self._at_once = dist.get_backend(self.group) == "gloo"
        self._operations: list[dist.P2POp] = []
        self._works: list[Work] = []

    def receive(self, messages: dict[int, Tensor]) -> None:
        """From each of these ranks, into these tensors, by the end of `wait`; empty ones are left out, as in `send`."""
        for rank, message in messages.items():
            self._post(dist.irecv, rank, message)

    def send(self, rank: int, message: Tensor) -> None:
        self.n_bytes += message.nbytes
        self._post(dist.isend, rank, message)

    def _post(self, kind: Any, rank: int, tensor: Tensor) -> None:
        if not tensor.numel():
            return
        operation = dist.P2POp(kind, tensor, group=self.group, group_peer=rank)
        if self._at_once:
            self._works += dist.batch_isend_irecv([operation])
        else:
            self._operations.append(operation)

    def wait(self) -> None:
        """Until all of it is there, and all memory may be used again."""
        if self._operations:
            self._works += dist.batch_isend_irecv(self._operations)
        for work in self._works:
            work.wait()
        self._operations, self._works = [], []


def split(numbers: Tensor, n: int, multiple: int) -> list[Tensor]:
    """n consecutive chunks of equal length, a multiple of `multiple`; the last ones may be shorter or empty."""
    length = -(-len(numbers) // (n * multiple)) * multiple
    return [numbers[j * length : (j + 1) * length] for j in range(n)]


def healthy_ranks(rows_NxF: Tensor) -> list[int]:
    """Those whose weight is 1."""
    return [rank for rank, weight in enumerate(rows_NxF[:, 0].tolist()) if weight == 1]


def average(parts: Sequence[Tensor], out: Tensor) -> None:
    """The mean of the parts, added up in their order, into `out`, which may be one of them; the others are spoilt."""
    total = parts[0]
    for term in parts[1:]:
        total = torch.add(total, term, out=term if term is out else total)
    torch.div(total, len(parts), out=out)


def ring_bytes(payload: int, world_size: int) -> int:
    """Bytes one worker sends to all-reduce `payload` bytes on a ring: 2 (n - 1) / n of them."""
    return 2 * (world_size - 1) * payload // world_size
