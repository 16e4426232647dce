"""Preparing a corpus: once, whole, without duplicates, with a split that never moves."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import NAME
from ticks.data.cache import cache_root
from ticks.data.corpus import SPLITS, ngram_floors, prepare, split_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TICKS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def articles(n: int, start: int = 0) -> list[bytes]:
    return [f"article number {i}: {'word ' * (i % 7)}".encode() for i in range(start, start + n)]


def contents(corpus) -> dict[str, list[bytes]]:
    return {split: corpus.tokens(split).tobytes().split(b"\0")[:-1] for split in SPLITS}


def test_every_document_lies_in_its_split_once_in_order() -> None:
    documents = articles(300)
    corpus = prepare(documents, identity="a")
    for split, found in contents(corpus).items():
        assert found == [d for d in documents if split_of(d) == split]
        assert corpus.documents[split] == len(found)
        assert corpus.n_bytes[split] == sum(len(d) + 1 for d in found)


def test_exact_duplicates_and_empty_documents_are_dropped() -> None:
    documents = articles(100)
    once, twice = prepare(documents, identity="once"), prepare([*documents, b"", *documents, b""], identity="twice")
    assert contents(once) == contents(twice)
    assert sum(once.documents.values()) == 100
    assert (once.duplicates, twice.duplicates) == (0, 100)


def test_a_cache_of_before_duplicates_were_counted_is_still_one() -> None:
    corpus = prepare(articles(100), identity="a")
    file = Path(corpus.directory, "corpus.json")
    content = json.loads(file.read_text())
    del content["duplicates"]
    file.write_text(json.dumps(content))
    assert prepare([], identity="a") == corpus


def test_the_split_is_about_90_5_5() -> None:
    splits = [split_of(d) for d in articles(4000)]
    for split, share in {"train": 0.9, "val": 0.05, "test": 0.05}.items():
        assert abs(splits.count(split) / 4000 - share) < 0.015


def test_adding_documents_moves_no_other() -> None:
    few, many = prepare(articles(200), identity="few"), prepare(articles(500, start=-100), identity="many")
    before, after = contents(few), contents(many)
    assert all(set(before[split]) <= set(after[split]) for split in SPLITS)


def test_the_split_is_that_of_earlier_versions() -> None:
    splits = [split_of(b"%d" % i) for i in range(100)]
    assert [i for i, split in enumerate(splits) if split == "val"] == [26, 47, 50, 56, 61, 71, 97]
    assert [i for i, split in enumerate(splits) if split == "test"] == [8, 19, 87]


def test_a_prepared_corpus_is_found_again_and_not_written_again() -> None:
    def untouchable() -> Iterator[bytes]:
        raise AssertionError("the documents were read again")
        yield b""

    first = prepare(articles(300), identity="a")
    stamp = Path(first.directory, "train.bin").stat().st_mtime_ns
    second = prepare(untouchable(), identity="a")
    assert second == first
    assert Path(first.directory, "train.bin").stat().st_mtime_ns == stamp


def test_another_identity_is_another_corpus(cache: Path) -> None:
    assert prepare(articles(50), identity="a").directory != prepare(articles(50), identity="b").directory
    assert len(list(cache.iterdir())) == 2


def test_documents_that_fail_halfway_leave_no_half_cache(cache: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield from articles(50)
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        prepare(failing(), identity="a")
    assert list(cache.iterdir()) == []
    assert sum(prepare(articles(50), identity="a").documents.values()) == 50


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_a_cache_below_a_file_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TICKS_CACHE", str(tmp_path / below))
    with pytest.raises(OSError, match=f"{below} .*: set the environment variable TICKS_CACHE to a directory that can"):
        prepare(articles(50), identity="a")


def test_a_disk_that_fills_while_preparing_says_what_to_set(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scratch(prefix: str, dir: Path) -> str:
        (place := dir / f"{prefix}x").mkdir()
        (place / "train.bin").symlink_to("/dev/full")
        return str(place)

    monkeypatch.setattr(tempfile, "mkdtemp", scratch)
    with pytest.raises(OSError, match=r"\(No space left on device\): set the environment variable TICKS_CACHE"):
        prepare(articles(500), identity="a")
    assert list(cache.iterdir()) == []


def test_a_prepared_corpus_needs_no_place_that_can_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = prepare(articles(50), identity="a")
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **kwargs: (_ for _ in ()).throw(PermissionError()))
    assert prepare(articles(50), identity="a") == corpus


def test_two_processes_preparing_at_once_leave_one_whole_corpus(cache: Path) -> None:
    other = {}

    def interrupted() -> Iterator[bytes]:
        """Someone else prepares, and finishes, the same corpus while this one is being written."""
        yield from articles(50)
        other["corpus"] = prepare(articles(100), identity="a")
        yield from articles(50, start=50)

    mine = prepare(interrupted(), identity="a")
    assert mine == other["corpus"]
    assert [path.name for path in cache.iterdir()] == [Path(mine.directory).name]


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKS_CACHE", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_root() == Path("/somewhere")
    monkeypatch.delenv("TICKS_CACHE")
    assert cache_root() == Path("/elsewhere") / NAME
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / NAME
    monkeypatch.setenv("TICKS_CACHE", "~/texts")
    assert cache_root() == Path.home() / "texts"


def test_tokens_are_a_read_only_map_of_bytes() -> None:
    tokens = prepare(articles(100), identity="a").tokens("train")
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_corpus_json_says_what_lies_beside_it() -> None:
    corpus = prepare(articles(300), identity="a")
    content = json.loads(Path(corpus.directory, "corpus.json").read_text())
    assert content["directory"] == corpus.directory
    assert content["n_bytes"] == {s: Path(corpus.directory, f"{s}.bin").stat().st_size for s in SPLITS}


def test_floors_are_those_of_the_formula(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, val = (bytes(rng.choice([97, 98, 99], size=size, p=[0.6, 0.3, 0.1]).tolist()) for size in (300, 60))
    (tmp_path / "train.bin").write_bytes(train)
    (tmp_path / "val.bin").write_bytes(val)
    expected = dict.fromkeys(("unigram", "bigram", "trigram"), 0.0)
    for t in range(2, len(val)):
        p = 1 / 256
        for n, name in enumerate(expected, start=1):
            context = val[t - n + 1 : t]
            places = [i for i in range(2, len(train)) if train[i - n + 1 : i] == context]
            p = (sum(train[i] == val[t] for i in places) + p) / (len(places) + 1)
            expected[name] -= np.log2(p) / (len(val) - 2)
    floors = ngram_floors(tmp_path)
    assert floors == pytest.approx(expected)


def test_without_a_validation_split_there_are_no_floors() -> None:
    only_train = [d for d in articles(30) if split_of(d) == "train"]
    assert prepare(only_train, identity="a").floors == {}


@pytest.mark.parametrize("file", ["train.bin", "val.bin", "corpus.json"])
def test_a_corpus_cut_short_in_the_cache_is_prepared_again(file: str) -> None:
    documents = articles(300)
    whole = contents(prepare(documents, identity="a"))
    damaged = cache_root() / next(cache_root().iterdir()).name / file
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert contents(prepare(documents, identity="a")) == whole
    assert len(list(cache_root().iterdir())) == 1
