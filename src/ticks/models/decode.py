"""The sequence that a model holds to be likeliest, token by token: the likeliest next token, or beam search.

Beam search keeps the `beam` likeliest beginnings. One that has ended is worth (sum of its log p) / length^penalty, its
end counted in; penalty 0 favours short sequences, 1 compares means per token. A sentence is done when `beam` sequences
have ended or none that goes on can become worth more; what has not ended at `max_length` is taken as it is. A beam of 1
is the greedy choice.

Shapes: B sentences, K beam, N rows that are decoded together, V vocabulary, T steps.
"""

from typing import Protocol

import torch
from torch import Tensor

from ticks.arguments import at_least, not_negative


class Continuation(Protocol):
    """What a model remembers of sequences while they grow."""

    def __call__(self, tokens_N: Tensor) -> Tensor:
        """Logits (N, V) of the token behind these."""

    def select(self, rows_N: Tensor) -> None:
        """Go on with these rows, in this order; one may come several times."""


def decode(
    continuation: Continuation,
    n: int,
    *,
    start_id: int,
    end_id: int,
    pad_id: int,
    max_length: int,
    beam: int = 1,
    length_penalty: float = 1.0,
    device: torch.device | None = None,
) -> Tensor:
    """The sequences (n, T) of `n` sentences: without start and end, padded, T at most `max_length`.

    ArgumentError for numbers that cannot be used.
    """
    at_least(1, beam=beam, max_length=max_length)
    not_negative(length_penalty=length_penalty)
    never = torch.tensor([start_id, pad_id], device=device)
    start_N = torch.full((n,), start_id, device=device)
    if beam == 1:
        tokens_BxT = greedy(continuation, start_N, never, end_id=end_id, pad_id=pad_id, max_length=max_length)
    else:
        tokens_BxT = beam_search(
            continuation, start_N, never, end_id=end_id, pad_id=pad_id, max_length=max_length, beam=beam,
            length_penalty=length_penalty,
        )  # fmt: skip
    return tokens_BxT[:, : int((tokens_BxT != pad_id).sum(1).max())]


def greedy(
    continuation: Continuation, start_N: Tensor, never: Tensor, *, end_id: int, pad_id: int, max_length: int
) -> Tensor:
    """The likeliest next token, again and again: (B, max_length), padded. `never` are tokens that are not chosen."""
    tokens_BxT = start_N.new_full((len(start_N), max_length), pad_id)
    rows_N, last_N = torch.arange(len(start_N), device=start_N.device), start_N
    for t in range(max_length):
        last_N = continuation(last_N).index_fill(1, never, -torch.inf).argmax(1)
        going = last_N != end_id
        if not going.all():
            rows_N, last_N = rows_N[going], last_N[going]
            continuation.select(going.nonzero()[:, 0])
        if not len(rows_N):
            break
        tokens_BxT[rows_N, t] = last_N
    return tokens_BxT


def beam_search(
    continuation: Continuation,
    start_N: Tensor,
    never: Tensor,
    *,
    end_id: int,
    pad_id: int,
    max_length: int,
    beam: int,
    length_penalty: float,
) -> Tensor:
    """What `beam` beginnings lead to: (B, max_length), padded. `never` are tokens that are not chosen."""
    B, K, device = len(start_N), beam, start_N.device
    answer_BxT = start_N.new_full((B, max_length), pad_id)
    worth_B = torch.full((B,), -torch.inf, device=device)
    ended_B = torch.zeros(B, dtype=torch.long, device=device)
    sentence_B = torch.arange(B, device=device)  # those that are not done
    tokens_BxKxT = start_N.new_full((B, K, max_length), pad_id)
    score_BxK = torch.full((B, K), -torch.inf, device=device)
    score_BxK[:, 0] = 0.0  # one beginning, the empty one
    last_N = start_N.repeat_interleave(K)
    continuation.select(sentence_B.repeat_interleave(K))
    for t in range(max_length):
        log_p_NxV = continuation(last_N).float().log_softmax(1).index_fill(1, never, -torch.inf)
        V = log_p_NxV.shape[1]
        all_BxKV = (score_BxK[:, :, None] + log_p_NxV.view(-1, K, V)).flatten(1)
        best_BxC, index_BxC = all_BxKV.topk(min(2 * K, K * V), dim=1)  # of which K at least go on
        from_BxC, token_BxC = index_BxC // V, index_BxC % V
        rows_Bx1 = torch.arange(len(sentence_B), device=device)[:, None]

        ends_BxC = (token_BxC == end_id) & torch.isfinite(best_BxC)
        ends_BxC[:, K:] = False  # as it would have to be among the K to go on
        ended_worth_B, c_B = (best_BxC / (t + 1) ** length_penalty).masked_fill(~ends_BxC, -torch.inf).max(1)
        better = ended_worth_B > worth_B[sentence_B]
        worth_B[sentence_B[better]] = ended_worth_B[better]
        answer_BxT[sentence_B[better]] = tokens_BxKxT[rows_Bx1[:, 0], from_BxC[rows_Bx1[:, 0], c_B]][better]
        ended_B[sentence_B] += ends_BxC.sum(1)

        score_BxK, c_BxK = best_BxC.masked_fill(token_BxC == end_id, -torch.inf).topk(K, dim=1)
        from_BxK, last_BxK = from_BxC.gather(1, c_BxK), token_BxC.gather(1, c_BxK)
        tokens_BxKxT = tokens_BxKxT[rows_Bx1, from_BxK]
        tokens_BxKxT[:, :, t] = last_BxK

        can_become_B = score_BxK[:, 0] / max_length**length_penalty
        if t + 1 == max_length:
            better = can_become_B > worth_B[sentence_B]
            answer_BxT[sentence_B[better]] = tokens_BxKxT[better, 0]
            break
        going = (ended_B[sentence_B] < K) & (can_become_B > worth_B[sentence_B])
        if not going.any():
            break
        chosen_BxK = (rows_Bx1 * K + from_BxK)[going]
        continuation.select(chosen_BxK.flatten())
        sentence_B, tokens_BxKxT, score_BxK, last_N = (
            sentence_B[going], tokens_BxKxT[going], score_BxK[going], last_BxK[going].flatten(),
        )  # fmt: skip
    return answer_BxT
