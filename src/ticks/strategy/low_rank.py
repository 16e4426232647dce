"""LowRank: matrices travel as the product of two thin ones (PowerSGD, arXiv 1905.13727)."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ticks.arguments import ArgumentError, at_least
from ticks.strategy.wire import Int8, Matrix, Received, Wire, healthy_ranks


class LowRank(Wire):
    """A matrix as a product of rank `rank`, its factors by another `wire` (default `Int8`).

    For a matrix (R, C), M_i = x_i + e_i on worker i, and an orthonormal V (C, rank), on all the same:

        U = an orthonormal basis (R, rank) of mean_i M_i V
        W_i = M_i^T U, and everybody goes on with U (mean_i W_i)^T
        e_i <- M_i - U W_i^T + U L_i^T, L_i being what `wire` lost of the W_i
        V <- a basis of mean_i W_i: one power iteration per message

    rank (R + C) numbers are sent instead of R C, in two messages; vectors, and matrices that two factors would not make
    smaller, travel by `wire` as they are. With rank 16 and int8 that is 0.05 of fp32's bytes for the default model and
    0.02 for one three times as wide. What is owed, e, is that of a worker's own projection: with what the mean lost, as
    in torch's hook, differences between workers would pile up in it. It takes 4 bytes per number; float64 is rounded.

    Every worker computes U and V by itself: bit-identical where processors, libraries and numbers of threads are the
    same. ArgumentError unless rank >= 1, and for a LowRank inside a LowRank.
    """

    lossy = True

    def __init__(self, rank: int = 16, *, wire: Wire | None = None) -> None:
        at_least(1, rank=rank)
        if isinstance(wire, LowRank):
            raise ArgumentError("wire", "LowRank", ": the factors of a low-rank wire need another wire")
        self.rank = int(rank)
        self.wire = wire or Int8()
        self._residuals: dict[str, Tensor] = {}  # by channel: e, and what `wire` lost of everything else
        self._rights: dict[str, Tensor] = {}  # by channel: the last mean W of each matrix, which all know

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
        if dist.get_world_size(group) == 1:
            return self.wire.mean(numbers_P, facts_F, exact=exact, group=group)
        healthy = bool(facts_F[0] == 1)
        thin = [m for m in matrices if self.rank * (m.rows + m.columns) < m.rows * m.columns]
        n_body, n_left = len(numbers_P) - exact, self.rank * sum(m.rows for m in thin)
        residual, right = self._memory(channel, n_body, self.rank * sum(m.columns for m in thin), numbers_P.device)
        whole = (
            residual.zero_() if not healthy else residual.add_(numbers_P[:n_body])
        )  # M; and x of all that is no matrix
        wholes, rights = [m.view(whole) for m in thin], self._columns(right, [m.columns for m in thin])

        rest = list(_between(thin, n_body))
        parts = [whole[place].to(numbers_P.dtype) for place in rest]
        left = torch.cat([numbers_P.new_zeros(n_left), *parts, numbers_P[n_body:]])
        lefts = self._columns(left, [m.rows for m in thin])
        for matrix, right_factor, left_factor in zip(wholes, rights, lefts, strict=True):
            left_factor.copy_(matrix @ _basis(right_factor))
        received = self.wire.mean(left, facts_F, exact=exact, channel=f"{channel}/left", step=step, group=group)
        lost = self.wire.settle(f"{channel}/left", group)
        if not healthy_ranks(received.rows_NxF):
            return received
        bases = [_basis(left_factor.to(residual.dtype)) for left_factor in lefts]
        start = n_left  # what was lost before it are the left factors': whatever U is, e owes the rest
        for place in rest:
            stop = start + place.stop - place.start
            numbers_P[place] = left[start:stop]
            whole[place] = 0.0 if lost is None else lost[start:stop]
            start = stop
        numbers_P[n_body:] = left[start:]
        if not thin:
            return received

        new_right = torch.zeros_like(right)
        new_rights = self._columns(new_right, [m.columns for m in thin])
        for matrix, basis, right_factor in zip(wholes, bases, new_rights, strict=True):
            right_factor.copy_(matrix.T @ basis)
            matrix.addmm_(basis, right_factor.T, alpha=-1.0)
        mean_right = self.wire.mean(new_right, facts_F, channel=f"{channel}/right", step=step, group=group)
        lost = self.wire.settle(f"{channel}/right", group)
        losses = self._columns(new_right.new_zeros(len(right)) if lost is None else lost, [m.columns for m in thin])
        for i, m in enumerate(thin):
            m.view(numbers_P).copy_(bases[i] @ new_rights[i].T)
            wholes[i].addmm_(bases[i], losses[i].T)
            size = new_rights[i].square().sum()  # of zeros, say: then what spanned the last rows is a better guess
            rights[i].copy_(torch.where((size > 0) & size.isfinite(), new_rights[i], rights[i]))
        return Received(received.rows_NxF, received.n_bytes + mean_right.n_bytes)

    def _memory(self, channel: str, n: int, n_right: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """What is owed and the right factors of the last message; new for a channel of another size."""
        residual, right = self._residuals.get(channel), self._rights.get(channel)
        if residual is None or len(residual) != n:
            residual = torch.zeros(n)
        if right is None or len(right) != n_right:
            right = torch.randn(n_right, generator=torch.Generator().manual_seed(0))
        self._residuals[channel] = residual = residual.to(device)
        self._rights[channel] = right = right.to(device)
        return residual, right

    def _columns(self, numbers: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Views (length, rank) of the beginning of `numbers`, one after the other.

        Each column lies in one piece: columns differ in size, and a wire may scale what lies side by side.
        """
        parts = numbers[: self.rank * sum(lengths)].split([self.rank * length for length in lengths])
        return [part.view(self.rank, length).T for part, length in zip(parts, lengths, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        own = {"residuals": self._residuals, "rights": self._rights}
        copies = {name: {channel: t.clone() for channel, t in tensors.items()} for name, tensors in own.items()}
        return copies | {"wire": self.wire.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._residuals = {channel: t.clone() for channel, t in state["residuals"].items()}
        self._rights = {channel: t.clone() for channel, t in state["rights"].items()}
        self.wire.load_state_dict(state["wire"])

    def reset(self) -> None:
        self._residuals = {}  # the right factors are no debt: all workers know them
        self.wire.reset()


def _basis(matrix: Tensor) -> Tensor:
    """Orthonormal columns that span those of `matrix`, and where it has fewer than columns, some others besides."""
    return torch.linalg.qr(matrix).Q


def _between(matrices: Sequence[Matrix], n: int) -> Iterator[slice]:
    """The places of `n` numbers that belong to none of the matrices, which come in their order."""
    start = 0
    for m in matrices:
        if m.start > start:
            yield slice(start, m.start)
        start = m.start + m.rows * m.columns
    if n > start:
        yield slice(start, n)
