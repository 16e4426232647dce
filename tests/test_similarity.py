"""Edits and chrF, against a plain reference and against sacrebleu."""

import itertools
import random
from functools import lru_cache

import pytest

from ticks.similarity import chrf, edits, nearest, ngram_counts

WORDS = ["in", "the", "beginning", "god", "made", "heaven", "and", "earth,", "waste", "dark."]


def plainly(a: str, b: str) -> int:
    """The definition, case by case."""

    @lru_cache(None)
    def of(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return of(len(a), len(b))


def test_edits_are_the_fewest() -> None:
    drawn = random.Random(0)
    texts = ["".join(drawn.choices("abc", k=drawn.randrange(8))) for _ in range(40)]
    for a, b in itertools.pairwise(texts):
        assert edits(a, b) == edits(b, a) == plainly(a, b)
    assert edits("kitten", "sitting") == 3
    assert edits(["K", "AE", "T"], ["K", "AA", "R", "T"]) == 2


def test_the_nearest_reference_counts_with_its_own_length() -> None:
    assert nearest("abc", ["xyz", "abcd", "abx"]) == (1, 4)
    assert nearest("", ["ab"]) == (2, 2)


def sentences(n: int, seed: int) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS, k=drawn.randrange(1, 9))) for _ in range(n)]


def of_all(said: list[str], references: list[tuple[str, ...]]) -> float:
    counted = [ngram_counts(text, right) for text, right in zip(said, references, strict=True)]
    return chrf([[sum(side) for side in zip(*order, strict=True)] for order in zip(*counted, strict=True)])


@pytest.mark.parametrize("n_references", [1, 2])
def test_chrf_is_sacrebleus(n_references: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    said = [*sentences(30, 0), "", "a", "the earth"]
    lists = [[*sentences(30, seed), "the", "b", "the earth"] for seed in range(1, n_references + 1)]
    expected = sacrebleu.corpus_chrf(said, lists).score
    assert 10 < expected < 80
    assert of_all(said, list(zip(*lists, strict=True))) == pytest.approx(expected, abs=1e-9)
    for text, right in zip(said, lists[0], strict=True):
        alone = sacrebleu.sentence_chrf(text, [right]).score
        assert chrf(ngram_counts(text, [right])) == pytest.approx(alone, abs=1e-9), (text, right)


def test_chrf_of_the_same_text_is_100_and_of_another_0() -> None:
    assert chrf(ngram_counts("the earth", ["the earth"])) == pytest.approx(100)
    assert chrf(ngram_counts("xyz", ["the"])) == 0
    assert chrf(ngram_counts("", ["the"])) == 0
