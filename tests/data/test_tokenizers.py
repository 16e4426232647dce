"""Text becomes tokens and comes back; a tokenizer is trained once, and always the same."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import run_workers
from ticks.arguments import ArgumentError
from ticks.data.tokenizers import END, FIRST_BYTE, PAD, START, Bpe, Bytes

TEXTS = ["the theatre of the north", "there <pad> and the other", "Zeitgefühl, 時間, 時間"] * 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TICKS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Bpe:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TICKS_CACHE", str(tmp_path_factory.mktemp("bpe")))
        return Bpe.trained(TEXTS, vocab_size=300, identity="shared")


@pytest.fixture(scope="module")
def each(bpe: Bpe) -> list[Bytes]:
    return [Bytes(), bpe]


@given(text=st.text() | st.sampled_from(["<pad>", "pad id", "\0", "Ġthe", *TEXTS]))
def test_any_text_comes_back(each: list[Bytes], text: str) -> None:
    for tokenizer in each:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert not {PAD, START, END} & set(tokens)
        assert all(token < tokenizer.vocab_size for token in tokens)
        assert tokenizer.lengths[tokens].sum() == len(text.encode())


@given(content=st.binary() | st.lists(st.sampled_from([b"the", b"\xe6", b"\xff", b"\0", b" "])).map(b"".join))
def test_any_bytes_come_back(each: list[Bytes], content: bytes) -> None:
    for tokenizer in each:
        assert tokenizer.to_bytes(tokenizer.encode(content)) == content


def test_what_a_command_line_cannot_read_is_the_bytes_that_were_typed(each: list[Bytes]) -> None:
    for tokenizer in each:
        assert tokenizer.to_bytes(tokenizer.encode("caf\udce9")) == b"caf\xe9"
        assert tokenizer.decode(tokenizer.encode("caf\udce9")) == "caf\ufffd"
        assert tokenizer.decode(tokenizer.encode("half \ud83d")) == "half ?"


def test_several_texts_are_encoded_as_each_is(each: list[Bytes]) -> None:
    texts = [*TEXTS, "", b"\xff the \xe6", b"the"]
    for tokenizer in each:
        assert tokenizer.encode_many(texts) == [tokenizer.encode(text) for text in texts]


def test_reserved_ids_stand_for_nothing(each: list[Bytes]) -> None:
    for tokenizer in each:
        assert (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == (0, 1, 2)
        assert tokenizer.decode([START, *tokenizer.encode("a"), END, PAD]) == "a"
        assert tokenizer.lengths[:4].tolist() == [0, 0, 0, 1]


def test_bytes_have_the_same_ids_in_both(bpe: Bpe) -> None:
    everything = bytes(range(256))
    assert Bytes().encode(everything) == list(range(FIRST_BYTE, FIRST_BYTE + 256))
    assert [bpe.bytes_of[i] for i in range(FIRST_BYTE, FIRST_BYTE + 256)] == [bytes([b]) for b in everything]
    assert bpe.encode(b"\0") == [FIRST_BYTE]


def test_what_comes_often_is_one_token(bpe: Bpe) -> None:
    assert bpe.encode(" the") == [bpe.bytes_of.index(b" the")]
    assert len(bpe.encode(TEXTS[0])) < len(TEXTS[0]) / 2
    assert Bytes().vocab_size == 259 < bpe.vocab_size <= 300
    assert len(set(bpe.bytes_of[FIRST_BYTE:])) == bpe.vocab_size - FIRST_BYTE


def test_text_that_repeats_nothing_has_no_merges() -> None:
    assert Bpe.trained(["abc"], vocab_size=300, identity="a").vocab_size == 259


def test_it_is_trained_once(cache: Path) -> None:
    def untouchable() -> Iterator[str]:
        raise AssertionError("the texts were read again")
        yield ""

    first = Bpe.trained(TEXTS, vocab_size=300, identity="a")
    again = Bpe.trained(untouchable(), vocab_size=300, identity="a")
    assert again.bytes_of == first.bytes_of
    assert again.digest == first.digest
    assert len(list(cache.iterdir())) == 1
    for other in ({"vocab_size": 290, "identity": "a"}, {"vocab_size": 300, "identity": "b"}):
        with pytest.raises(AssertionError, match="read again"):
            Bpe.trained(untouchable(), **other)  # type: ignore[arg-type]


def _merges(cache: Path) -> str:
    os.environ["TICKS_CACHE"] = str(cache / os.environ["LOCAL_RANK"])
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcd"), 4)) for _ in range(2000)]
    return Bpe.trained(words, vocab_size=400, identity="a").digest


def test_it_is_the_same_in_every_process(cache: Path) -> None:
    """Many pairs are equally frequent here, and hashes differ from process to process."""
    assert len(set(run_workers(3, _merges, cache)) | {run_workers(1, _merges, cache / "again")[0]}) == 1


def test_one_cut_short_in_the_cache_is_trained_again(cache: Path) -> None:
    first = Bpe.trained(TEXTS, vocab_size=300, identity="a")
    (file,) = cache.glob("*/tokenizer.json")
    file.write_text(file.read_text()[:-9])
    assert Bpe.trained(TEXTS, vocab_size=300, identity="a").digest == first.digest
    assert [path.name for path in cache.iterdir()] == [file.parent.name]


def test_texts_that_fail_halfway_leave_nothing(cache: Path) -> None:
    def failing() -> Iterator[str]:
        yield from TEXTS
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        Bpe.trained(failing(), vocab_size=300, identity="a")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("vocab_size", [258, 0, -1, 2.5, True, 1 << 21])
def test_a_size_that_cannot_be_is_refused(vocab_size: int) -> None:
    with pytest.raises(ArgumentError, match=rf"^vocab_size={vocab_size} must be .*at least 259 and at most 1048576"):
        Bpe.trained(TEXTS, vocab_size=vocab_size, identity="a")


def test_without_the_library_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r'^byte-pair encoding needs .*: pip install -e "\.\[bpe\]"$'):
        Bpe.trained(TEXTS, vocab_size=300, identity="a")
    assert Bytes().decode(Bytes().encode("a")) == "a"
