"""Decoding: the likeliest sequence by brute force, and what a beam of 1 is."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ticks.models.decode import beam_search, decode, greedy

PAD, START, END = 0, 1, 2
V = 5  # two of which are words
T = 4
SPECIAL = {"start_id": START, "end_id": END, "pad_id": PAD}


class Table:
    """Logits of the next token, drawn for each sentence and everything that may stand before it."""

    def __init__(self, n: int, *, seed: int = 0, ending: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits: list[dict[tuple[int, ...], Tensor]] = []
        for _ in range(n):
            before = [p for t in range(T) for p in itertools.product((3, 4), repeat=t)]
            self.logits.append({p: 2 * torch.randn(V, generator=generator) for p in before})
            for row in self.logits[-1].values():
                row[END] += ending
        self.rows = [(sentence, ()) for sentence in range(n)]
        self.calls: list[int] = []

    def __call__(self, tokens_N: Tensor) -> Tensor:
        assert len(tokens_N) == len(self.rows)
        grown = [(s, (*p, int(t)) if t != START else p) for (s, p), t in zip(self.rows, tokens_N, strict=True)]
        self.rows = grown  # type: ignore[assignment]
        self.calls.append(len(grown))
        nothing = torch.zeros(V)  # of a beginning that is not one
        return torch.stack([self.logits[s].get(p, nothing) for s, p in self.rows])

    def select(self, rows_N: Tensor) -> None:
        self.rows = [self.rows[int(row)] for row in rows_N]

    def worth(self, sentence: int, words: tuple[int, ...], *, ended: bool, penalty: float) -> float:
        tokens = [*words, END] if ended else list(words)
        log_p = [self.logits[sentence][tuple(words[:t])].log_softmax(0)[token] for t, token in enumerate(tokens)]
        return float(sum(log_p)) / len(tokens) ** penalty

    def everything(self) -> Iterator[tuple[tuple[int, ...], bool]]:
        """Every sequence of at most T tokens, its end counted in, and whether it has ended."""
        for n in range(T + 1):
            for words in itertools.product((3, 4), repeat=n):
                if n < T:
                    yield words, True
                else:
                    yield words, False


def texts(tokens_BxT: Tensor) -> list[tuple[int, ...]]:
    return [tuple(token for token in row if token != PAD) for row in tokens_BxT.tolist()]


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("ending", [-1.0, 1.0])
def test_a_beam_as_wide_as_all_there_is_finds_the_best_sequence(penalty: float, ending: float) -> None:
    table = Table(12, ending=ending)
    expected = [
        max(table.everything(), key=lambda s: table.worth(sentence, s[0], ended=s[1], penalty=penalty))[0]
        for sentence in range(12)
    ]
    found = decode(table, 12, beam=2**T, max_length=T, length_penalty=penalty, **SPECIAL)
    assert texts(found) == expected
    assert len(set(map(len, expected))) > 1


def test_a_wider_beam_finds_what_is_worth_more() -> None:
    worth = []
    for beam in (1, 2, 16):
        table = Table(40, seed=1)
        found = texts(decode(table, 40, beam=beam, max_length=T, length_penalty=0.0, **SPECIAL))
        worth.append(sum(table.worth(s, w, ended=len(w) < T, penalty=0.0) for s, w in enumerate(found)))
    assert worth[0] < worth[1] <= worth[2]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_of_one_is_the_likeliest_next_token(penalty: float) -> None:
    start, never, how = torch.full((30,), START), torch.tensor([PAD, START]), {"end_id": END, "pad_id": PAD}
    one = beam_search(Table(30), start, never, max_length=T, beam=1, length_penalty=penalty, **how)
    likeliest = greedy(Table(30), start, never, max_length=T, **how)
    assert torch.equal(one, likeliest)
    assert texts(likeliest) == texts(decode(Table(30), 30, max_length=T, length_penalty=penalty, **SPECIAL))
    assert {len(words) for words in texts(likeliest)} >= {0, 1, T}


@pytest.mark.parametrize("beam", [1, 3])
def test_a_sentence_is_decoded_alike_whatever_stands_beside_it(beam: int) -> None:
    together = texts(decode(Table(8), 8, beam=beam, max_length=T, **SPECIAL))
    for sentence in range(8):
        alone = Table(8)
        alone.rows = [alone.rows[sentence]]
        assert texts(decode(alone, 1, beam=beam, max_length=T, **SPECIAL)) == [together[sentence]]


@pytest.mark.parametrize("beam", [1, 3])
def test_what_has_ended_is_not_computed_any_more(beam: int) -> None:
    table = Table(30, ending=3.0)
    decode(table, 30, beam=beam, max_length=T, **SPECIAL)
    assert table.calls[0] == 30 * beam
    assert all(later < earlier for earlier, later in itertools.pairwise(table.calls))


@pytest.mark.parametrize("beam", [1, 4])
def test_padding_and_start_are_never_chosen(beam: int) -> None:
    table = Table(5)
    for of_sentence in table.logits:
        for row in of_sentence.values():
            row[[PAD, START]] = 50.0
    assert {token for words in texts(decode(table, 5, beam=beam, max_length=T, **SPECIAL)) for token in words} <= {3, 4}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beam": 0}, "beam=0 must be at least 1"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
        ({"length_penalty": -1.0}, "length_penalty=-1.0 must not be negative"),
    ],
)
def test_what_cannot_be_decoded_with_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(Table(1), 1, **({"max_length": T, **SPECIAL} | wrong))
