"""How far a text is from one that is right: edits between sequences, and chrF. Every room may use it.

chrF (Popovic 2015; as sacrebleu counts it): n-grams of characters, n from 1 to 6, spaces left out, are counted in all
texts together; P and R are the means over n of the shares of them that match, of what was said and of what is right;
chrF = 100 (1 + b^2) P R / (b^2 P + R), b = 2.
"""

from collections import Counter
from collections.abc import Sequence

ORDERS = 6
BETA = 2.0
Counts = list[tuple[int, int, int]]  # by n: n-grams that match, that were said, that are right


def edits(a: Sequence, b: Sequence) -> int:
    """The fewest symbols to insert, leave out or replace that make `b` of `a` (Levenshtein)."""
    above = list(range(len(b) + 1))
    for i, symbol in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (symbol != other)))
        above = row
    return above[-1]


def nearest(said: Sequence, references: Sequence[Sequence]) -> tuple[int, int]:
    """Edits to the nearest of the references, the first of several, and that one's length."""
    return min(((edits(said, reference), len(reference)) for reference in references), key=lambda pair: pair[0])


def ngram_counts(said: str, references: Sequence[str]) -> Counts:
    """Of the reference that `said` agrees with best, the first of several. n-grams longer than the reference were not
    said."""
    own = _ngrams(said)
    counted = []
    for reference in references:
        pairs = zip(own, _ngrams(reference), strict=True)
        counted.append(
            [((mine & theirs).total(), mine.total() if theirs else 0, theirs.total()) for mine, theirs in pairs]
        )
    return max(counted, key=chrf)


def chrf(counts: Sequence[Sequence[float]]) -> float:
    """Of n-grams counted over all texts, from 0 to 100. An n that one side has no n-gram of does not count."""
    shares = [(matched / said, matched / right) for matched, said, right in counts if said and right]
    if not shares:
        return 0.0
    precision, recall = (sum(side) / len(shares) for side in zip(*shares, strict=True))
    total = BETA**2 * precision + recall
    return 100 * (1 + BETA**2) * precision * recall / total if total else 0.0


def _ngrams(text: str) -> list[Counter[str]]:
    text = "".join(text.split())
    return [Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, ORDERS + 1)]
