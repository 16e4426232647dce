"""Labelled texts: what is learnt from which of them, and what a batch of them is."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ticks.data import LabelledTexts, Topics, TrainedBpe
from ticks.data.bbc import articles
from ticks.data.corpus import SPLITS, split_of
from ticks.data.labelled_corpus import Row, prepare, tokens_of
from ticks.data.tokenizers import PAD, START, Bpe, Bytes


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TICKS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def some(n: int = 200) -> list[Row]:
    texts = [f"text {i} of {'north' if i % 3 else 'south'} {'and more ' * (i % 5)}".encode() for i in range(n)]
    return [Row(split_of(text), text, "north" if i % 3 else "south") for i, text in enumerate(texts)]


class Directions(LabelledTexts):
    what: Any = staticmethod(some)

    def identity(self) -> str:
        return repr(self.what)

    def rows(self) -> Iterator[Row]:
        yield from self.what()


def directions(what: Any = some, *, vocab_size: int | None = 290, **options: Any) -> Directions:
    tokenizer = None if vocab_size is None else TrainedBpe(vocab_size=vocab_size)
    data = Directions(
        **{"block_size": 12, "global_batch_size": 4, "eval_batch_size": 8, "tokenizer": tokenizer} | options
    )
    data.what = what
    return data


# ---- the files


def test_texts_labels_and_tokens_come_back() -> None:
    rows = some()
    corpus = prepare(rows, identity="a")
    for split in SPLITS:
        mine = [row for row in rows if row.split == split]
        assert list(corpus.texts(split)) == [row.text for row in mine]
        assert [corpus.class_names[i] for i in corpus.labels(split)] == [row.label for row in mine]
        tokens = tokens_of(corpus, Bytes())[split]
        assert [Bytes().to_bytes(tokens[i]) for i in range(len(tokens))] == [row.text for row in mine]
    assert corpus.sizes == {split: sum(row.split == split for row in rows) for split in SPLITS}


def test_they_are_read_once(cache: Path) -> None:
    first = prepare(some(), identity="a")
    assert prepare(iter(()), identity="a") == first
    (first.directory / "train.bin").write_bytes(b"")
    assert list(prepare(some(), identity="a").texts("train")) == [r.text for r in some() if r.split == "train"]
    assert [path.name for path in cache.iterdir()] == [first.directory.name]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["10", "9", "-1"], ["-1", "9", "10"]), (["b", "10", "a"], ["10", "a", "b"]), (["2.5", "2"], ["2", "2.5"])],
)
def test_classes_are_in_order(labels: list[str], expected: list[str]) -> None:
    corpus = prepare([Row("train", b"text", label) for label in labels], identity="a")
    assert corpus.class_names == expected
    assert [corpus.class_names[i] for i in corpus.labels("train")] == labels


def test_rows_without_a_split_are_left_out_and_texts_in_two_splits_are_counted() -> None:
    rows = [Row("train", b"a", "x"), Row("train", b"b", "y"), Row(None, b"", ""), Row("val", b"a", "x")]
    corpus = prepare(rows, identity="a")
    assert (corpus.left_out, corpus.shared) == (1, 1)
    assert corpus.sizes == {"train": 2, "val": 1, "test": 0}


@pytest.mark.parametrize(("rows", "message"), [([], "not 0"), ([Row("train", b"a", "x")], "not 1: 'x'")])
def test_a_single_class_is_refused(cache: Path, rows: list[Row], message: str) -> None:
    with pytest.raises(ValueError, match=f"there must be at least two classes, {message}"):
        prepare(rows, identity="a")
    assert list(cache.iterdir()) == []


# ---- what a model is given


def test_a_text_is_start_and_its_tokens_cut_and_padded() -> None:
    data = directions()
    x, y = data.collate([data.datasets["train"][i] for i in (0, 4)])
    train = [row for row in some() if row.split == "train"]
    for row, label, text in zip(x, y, (train[0], train[4]), strict=True):
        tokens = [START, *data.tokenizer.encode(text.text)][:12]
        assert row.tolist() == tokens + [PAD] * (x.shape[1] - len(tokens))
        assert data.class_names[label] == text.label
    assert x.shape[1] <= 12
    assert data.datasets["train"][4][0].shape == (12,)
    assert (x.dtype, y.dtype) == (torch.int64, torch.int64)
    short = data.collate([data.datasets["train"][0]])[0]
    assert PAD not in short


def test_the_shape_follows_from_the_texts() -> None:
    data = directions()
    assert data.shape == {
        "vocab_size": data.tokenizer.vocab_size,
        "block_size": 12,
        "n_classes": 2,
        "pad_id": PAD,
        "mask_id": None,
    }
    assert 259 < data.shape["vocab_size"] <= 290
    assert data.step_label() == "4 texts of up to 12 tokens"
    assert directions(vocab_size=None).shape["vocab_size"] == 259
    assert directions(vocab_size=None).step_label() == "4 texts of up to 12 bytes"


def test_few_labelled_texts_are_the_same_each_time_and_among_more() -> None:
    def chosen(n: int, seed: int = 0) -> dict[str, set[bytes]]:
        data = directions(n_per_class=n, seed=seed)
        train = [row for row in some() if row.split == "train"]
        rows = [train[i] for i in data.datasets["train"].rows]  # type: ignore[attr-defined]
        return {name: {row.text for row in rows if row.label == name} for name in data.class_names}

    few, more = chosen(3), chosen(10)
    assert chosen(3) == few
    for name in ("north", "south"):
        assert len(few[name]) == 3
        assert few[name] < more[name]
    assert chosen(3, seed=1) != few


def test_the_tokenizer_learns_from_every_training_text_whatever_is_labelled() -> None:
    few, all_of_them = directions(n_per_class=2), directions()
    assert few.tokenizer.digest == all_of_them.tokenizer.digest
    train = [row.text for row in some() if row.split == "train"]
    assert few.tokenizer.digest == Bpe.trained(train, vocab_size=290, identity="by hand").digest
    assert directions(n_per_class=2, vocab_size=None).notes() == [
        "n_per_class=2: 4 texts in 2 classes to learn from, "
        + ", ".join(f"{len(all_of_them.datasets[s])} for {s}" for s in ("val", "test"))  # type: ignore[arg-type]
    ]


def test_how_many_texts_there_are_is_told_as_a_fact() -> None:
    sizes = {split: sum(row.split == split for row in some()) for split in SPLITS}
    what = f"texts: {sizes['train']} in 2 classes to learn from, {sizes['val']} for val, {sizes['test']} for test"
    assert directions(vocab_size=None).notes() == [what]
    (_, note) = directions(vocab_size=None, global_batch_size=1000).notes()
    assert note.startswith(f"global_batch_size=1000: more than the {sizes['train']} texts there are to learn from")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_text_is_measured_once_by_some_worker(world_size: int) -> None:
    data = directions()
    seen = []
    for worker in range(world_size):
        batches = data.eval_batches("val", world_size, worker)
        seen += [row[row != PAD].tolist() for i in range(len(batches)) for row in batches[i][0]]
    expected = [[START, *data.tokenizer.encode(row.text)][:12] for row in some() if row.split == "val"]
    assert sorted(seen) == sorted(expected)


def test_baselines_are_the_commonest_class_and_a_linear_model_of_words() -> None:
    found = directions().baselines()["accuracy"]
    val = [row.label for row in some() if row.split == "val"]
    assert found["commonest class"] == pytest.approx(val.count("north") / len(val))
    assert found["TF-IDF, logistic regression"] == 1.0


def test_without_scikit_learn_there_is_one_baseline_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    assert list(directions().baselines()["accuracy"]) == ["commonest class"]


def test_of_one_class_in_the_training_split_there_is_no_linear_model() -> None:
    def north_alone() -> list[Row]:
        return [row for row in some() if row.split != "train" or row.label == "north"]

    assert list(directions(north_alone).baselines()["accuracy"]) == ["commonest class"]


# ---- going on


def other_classes() -> list[Row]:
    return [*some(), Row("val", b"text of the east", "east")]


def only_north() -> list[Row]:
    return [row._replace(label="a" if row.label == "south" else "north") for row in some()]


def trained_on(what: Any) -> dict[str, Any]:
    data = directions(what)
    data.prepare_data()
    return data.state_dict()


def test_a_state_brings_tokenizer_and_classes_back() -> None:
    def without_north() -> list[Row]:
        return [row for row in other_classes() if row.label != "north"]

    now = directions(without_north)
    now.recall(trained_on(other_classes))
    assert now.class_names == ["east", "north", "south"]
    assert now.corpus.class_names == ["east", "south"]
    labels = [now.class_names[int(now.datasets["val"][i][1])] for i in range(len(now.datasets["val"]))]  # type: ignore[arg-type]
    assert labels == [row.label for row in without_north() if row.split == "val"]
    assert now.tokenizer.digest == directions(other_classes).tokenizer.digest
    assert now.tokenizer.digest != directions(without_north).tokenizer.digest


def test_a_class_that_was_not_learnt_is_refused() -> None:
    data = directions(other_classes)
    data.recall(trained_on(some))
    with pytest.raises(ValueError, match="'east' is none of the classes that were learnt: north, south"):
        data.prepare_data()


def test_training_does_not_go_on_with_other_texts() -> None:
    data = directions(only_north)
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))  # type: ignore[assignment]
    data.load_state_dict(data.state_dict())
    with pytest.raises(Exception, match="not the samples that this run has learnt from"):
        data.load_state_dict(trained_on(some))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block_size": 0}, "block_size=0 must be at least 3"),
        ({"n_per_class": 0}, "n_per_class=0 must be at least 1"),
        ({"n_per_class": 150}, r"n_per_class=150 is more than the \d+ of class 'north'"),
        ({"global_batch_size": 0}, "global_batch_size=0 must be at least 1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        directions(**wrong).prepare_data()


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="too few texts: of 5 none is for val"):
        directions(lambda: some(5)).prepare_data()


# ---- the articles


def test_articles_are_split_by_their_content_without_copies() -> None:
    data = Topics(block_size=256, global_batch_size=8)
    assert data.class_names == ["business", "entertainment", "politics", "sports", "tech"]
    assert data.corpus.sizes == {"train": 1944, "val": 87, "test": 96}
    texts = {split: list(data.corpus.texts(split)) for split in SPLITS}
    assert all(split_of(text) == split for split, found in texts.items() for text in found)
    everything = [text for found in texts.values() for text in found]
    assert len(set(everything)) == len(everything) == 2225 - 98
    assert set(everything) == set(articles())
    assert data.corpus.shared == 0
    assert np.bincount(data.corpus.labels("train")).tolist() == [451, 340, 372, 457, 324]
