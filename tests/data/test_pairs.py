"""Pairs of texts: split by source, batched by length, every target of a source is right."""

import gc
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ticks.arguments import ArgumentError
from ticks.data import PairFiles
from ticks.data.by_length import ByLength
from ticks.data.pairs import Pairs, Sample, padded
from ticks.data.vocabulary import UNKNOWN, Symbols

LINES = [f"{'ab' * (i % 7)}{i}\t{'x ' * (i % 5)}y{i % 3}" for i in range(400)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "pairs.tsv", LINES)


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def data(path: Path | str | None = None, **arguments: Any) -> PairFiles:
    return PairFiles(path=None if path is None else str(path), **({"global_batch_size": 8} | arguments))


def sources(made: PairFiles, split: str) -> list[str]:
    return [sample.source_text for sample in made.samples(split)]


# ---- reading and splitting


def test_garbage_is_looked_for_again_behind_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collects: list[bool] = []
    prepare = PairFiles._prepare
    monkeypatch.setattr(PairFiles, "_prepare", lambda *a, **k: (collects.append(gc.isenabled()), prepare(*a, **k)))
    made = data(file)
    made.recall(made.state_dict())
    assert (collects, gc.isenabled()) == ([False] * 2, True)
    with pytest.raises(ArgumentError):
        data(file, source_length=2, target_length=2)
    assert gc.isenabled()


def test_every_pair_is_in_one_split_and_stays_there(file: Path) -> None:
    made = data(file)
    by_split = {split: sources(made, split) for split in ("train", "val", "test")}
    assert sorted(s for split in by_split.values() for s in split) == sorted(line.split("\t")[0] for line in LINES)
    assert len(by_split["train"]) > 330
    assert min(len(by_split["val"]), len(by_split["test"])) > 8
    written(file, [*LINES[200:], "more\tx", *LINES[:200]])
    again = data(file)
    for split, before in by_split.items():
        assert set(before) <= set(sources(again, split)), split
    assert sources(data(file), "train") == sources(again, "train")


def test_all_targets_of_a_source_are_in_its_split_and_right(tmp_path: Path) -> None:
    lines = [f"{i}\t{target}" for target in ("x", "y", "x") for i in range(200)]
    made = data(written(tmp_path / "several.tsv", lines))
    assert all(sample.references == ("x", "y") for split in ("train", "val", "test") for sample in made.samples(split))
    for split in ("val", "test"):
        assert len(sources(made, split)) == len(set(sources(made, split)))
    learnt = [(s.source_text, tuple(s.target)) for s in made.samples("train")]
    assert len(learnt) == len(set(learnt)) == 2 * len(set(sources(made, "train")))
    assert not set(sources(made, "train")) & {*sources(made, "val"), *sources(made, "test")}


def test_three_files_are_three_splits_and_nothing_evaluated_is_learnt_from(tmp_path: Path) -> None:
    names = {
        split: str(written(tmp_path / split, lines))
        for split, lines in {"train": ["a\tx", "b\ty", "c\tz"], "val": ["b\tq"], "test": ["d\tx"]}.items()
    }
    made = data(**names, global_batch_size=2)
    assert {split: sources(made, split) for split in names} == {"train": ["a", "c"], "val": ["b"], "test": ["d"]}
    assert made.notes() == ["pairs: 1 are left out, which have a source that is evaluated"]
    del names["test"]
    assert set(data(**names).datasets) == {"train", "val"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\nno tab here\n", "path='FILE' : line 2 has no tab: it must be source, tab, target"),
        ("a\tb\tc\n", ": line 1 has 2 tabs: it must be source, tab, target"),
        ("a\tb\n\n \tc\n", ": line 3 has no source"),
        ("a\t  \n", ": line 1 has no target"),
        ("\n\n", "has no pair in it"),
        ("a\tb\n", "no pair is in the"),
        (b"a\t\xff\n", "is no text in UTF-8: byte 2 is none"),
    ],
)
def test_what_cannot_be_read_is_named_in_a_line(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:  # noqa: PT011
        data(path)
    assert message.replace("'FILE' :", f"{str(path)!r}:") in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_given_must_fit_together(file: Path) -> None:
    with pytest.raises(ArgumentError, match=r"path='/nowhere.tsv' is no file; give one with a source, a tab"):
        data("/nowhere.tsv")
    with pytest.raises(ValueError, match="path=None is not set"):
        data()
    with pytest.raises(ValueError, match="val=None is not set"):
        data(train=str(file))
    with pytest.raises(ValueError, match="and train: give one file to split, or one for each"):
        data(file, train=str(file))
    with pytest.raises(ValueError, match="source_tokens='letters' is unknown; known: characters, words, bpe"):
        data(file, source_tokens="letters")
    with pytest.raises(ValueError, match="target_length=1 must be at least 2 tokens"):
        data(file, target_length=1)


def test_windows_line_ends_and_a_byte_order_mark_are_no_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "windows.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(f"{i}\tx\u2028y\r\n" for i in range(200)).encode())
    made = data(path)
    assert "0" in {s for split in ("train", "val", "test") for s in sources(made, split)}
    assert made.samples("train")[0].references == ("x\u2028y",)


# ---- tokens


def test_symbols_are_those_of_the_training_texts() -> None:
    letters = Symbols(["cab", "b"])
    assert letters.vocab_size == 4 + 3
    assert letters.encode("abc!") == [4, 5, 6, 3]
    assert letters.decode([1, 4, 5, 6, 3, 2, 0]) == "abc\N{REPLACEMENT CHARACTER}"
    words = Symbols(["K AE T", "T AE K"], words=True)
    assert words.encode("T AE  K") == [6, 4, 5]
    assert words.decode([6, 4, 5, 2]) == "T AE K"


@pytest.mark.parametrize("words", [False, True])
def test_symbols_are_made_again_of_themselves(words: bool) -> None:
    made = Symbols(["K AE\u2028 \N{REPLACEMENT CHARACTER} \U0001f600 T"], words=words)
    again = Symbols.of(made.own, words=words)
    assert (again.symbols, again.tokens, again.words) == (made.symbols, made.tokens, words)
    assert Symbols.of([], words=words).vocab_size == 4


def test_a_vocabulary_never_sees_what_is_evaluated(tmp_path: Path) -> None:
    names = {"train": "a\tx", "val": "b\ty", "test": "c\tz"}
    made = data(**{split: str(written(tmp_path / split, [line])) for split, line in names.items()})
    assert (made.shape["source_vocab_size"], made.shape["target_vocab_size"]) == (5, 5)
    batch = made.collate([made.datasets["val"][0]])
    assert batch["source"].tolist() == [[3]]
    assert batch["target"].tolist() == [[1, 3, 2]]
    assert batch["references"] == [("y",)]


def test_byte_pairs_are_those_of_each_sides_training_texts(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    lines = [f"the house of {i}\tla maison de {i}" for i in range(300)]
    path = written(tmp_path / "houses.tsv", lines)
    made = data(path, source_tokens="bpe", target_tokens="bpe", vocab_size=280)
    longest = {len(made.source_tokenizer.decode([token])) for token in range(made.shape["source_vocab_size"])}
    assert max(longest) >= len(" house")
    assert made.source_tokenizer.encode_many(["house"]) != made.target_tokenizer.encode_many(["house"])
    for sample in made.samples("test"):
        assert made.shape["decode"]([1, *sample.target, 2, 0]) == sample.references[0]
        assert len(sample.target) < len(sample.references[0])


def test_a_shared_vocabulary_is_of_both_sides_training_texts(tmp_path: Path) -> None:
    made = data(written(tmp_path / "both.tsv", [f"a{i}\tb{i}" for i in range(200)]), shared_vocabulary=True)
    assert made.source_tokenizer is made.target_tokenizer
    assert made.shape["source_vocab_size"] == made.shape["target_vocab_size"] == 4 + 12
    assert made.shape["shared_vocabulary"]
    with pytest.raises(ValueError, match="shared_vocabulary=True needs source_tokens='characters' on both sides"):
        data(tmp_path / "both.tsv", shared_vocabulary=True, target_tokens="words")


# ---- batches


def test_a_batch_is_padded_and_has_start_and_end() -> None:
    assert padded([[5], [6, 7]]).tolist() == [[5, 0], [6, 7]]


def test_targets_begin_and_end_and_the_shape_has_room_for_the_longest(file: Path) -> None:
    made = data(file, target_tokens="words")
    batch = made.collate(made.samples("train")[-3:])
    assert batch["target"][:, 0].tolist() == [1, 1, 1]
    assert all(2 in row for row in batch["target"].tolist())
    longest = max((s for split in ("train", "val", "test") for s in made.samples(split)), key=lambda s: len(s.source))
    assert made.shape["source_length"] == len(longest.source)
    assert made.shape["target_length"] == 1 + max(len(s.target) for s in made.samples("train"))
    text = batch["references"][0][0]
    assert made.shape["decode"](batch["target"][0].tolist()) == text


def test_longer_pairs_are_not_learnt_from_and_cut_where_they_are_evaluated(file: Path) -> None:
    whole = data(file)
    made = data(file, source_length=6, target_length=5)
    assert max(len(s.source) for s in made.samples("train")) <= 6
    assert max(len(s.target) for s in made.samples("train")) <= 4
    assert sources(made, "val") == sources(whole, "val")
    batch = made.collate(made.samples("val"))
    assert batch["source"].shape[1] == 6
    assert batch["target"].shape[1] == 6  # START, four tokens, END
    assert batch["references"] == [s.references for s in whole.samples("val")]
    dropped = len(whole.samples("train")) - len(made.samples("train"))
    assert made.notes() == [f"pairs: {dropped} are left out, which are longer than 6 and 5 tokens"]
    with pytest.raises(ValueError, match="leave no pair to learn from"):
        data(file, source_length=2, target_length=2)


def numbered(n: int) -> Pairs:
    lengths = np.random.default_rng(0).integers(1, 40, n)
    return Pairs([Sample([0] * int(length), [], str(i), ()) for i, length in enumerate(lengths)])


def steps(n: int, parts: int, n_steps: int, workers: int, seed: int = 0) -> list[list[int]]:
    """What each step learns from, over all workers and accumulated batches, in the order of its parts."""
    of = [
        ByLength(
            numbered(n), None, global_batch_size=12, batch_size=12 // parts, seed=seed, worker=w, world_size=workers
        )
        for w in range(workers)
    ]
    accumulated = parts // workers
    return [
        [int(i) for a in range(accumulated) for w in of for i in w.samples(step * accumulated + a)]
        for step in range(n_steps)
    ]


@pytest.mark.parametrize("n", [7, 100, 500, 2000])
def test_no_sample_is_lost_or_doubled_whoever_computes_what(n: int) -> None:
    window = max(1, min(32, n // 12))
    one = steps(n, 1, 3 * window, 1)
    for parts, workers in ((2, 2), (4, 4), (6, 2), (3, 1)):
        assert [sorted(s) for s in steps(n, parts, 3 * window, workers)] == [sorted(s) for s in one]
    seen = np.bincount([i for step in one for i in step], minlength=n)
    stream = 3 * window * 12
    assert seen.max() - seen.min() <= 1 or stream < n
    assert seen.sum() == stream
    assert steps(n, 1, 3, 1, seed=1) != one[:3]


def test_samples_of_a_batch_are_of_about_the_same_length_and_steps_in_no_order_of_length() -> None:
    lengths = numbered(2000).lengths
    taken = [lengths[step] for step in steps(2000, 2, 64, 2)]
    assert np.mean([np.ptp(batch) for batch in taken]) < 3
    means = [batch.mean() for batch in taken]
    assert 20 < sum(b > a for a, b in itertools.pairwise(means)) < 44
    for batch in taken:  # two workers, each with every other sample
        assert abs(batch[:6].sum() - batch[6:].sum()) <= np.ptp(batch)


def test_a_batch_is_the_same_whenever_it_is_made(file: Path) -> None:
    first, again = (data(file).train_batches(2, 1, 4) for _ in range(2))
    batches = [first.batch(i) for i in range(70)]
    for index in (69, 0, 33):
        assert torch.equal(again.batch(index)["target"], batches[index]["target"])
    assert {len(batch["source"]) for batch in batches} == {4}


# ---- going on


def other(path: Path, old: str, new: str) -> Path:
    """The pairs with one target changed."""
    assert sum(line.endswith(f"\t{old}") for line in LINES) > 0
    changed = next(i for i, line in enumerate(LINES) if line.endswith(f"\t{old}") and "ab" in line)
    return written(path, [f"{line[: -len(old)]}{new}" if i == changed else line for i, line in enumerate(LINES)])


def go_on(made: PairFiles, state: dict[str, Any], fn: str = "fit") -> None:
    made.recall(state)
    made.trainer = SimpleNamespace(state=SimpleNamespace(fn=fn))  # type: ignore[assignment]
    made.load_state_dict(state)


def test_training_goes_on_with_the_same_pairs_alone(file: Path, tmp_path: Path) -> None:
    state = data(file).state_dict()
    go_on(data(file), state)
    same_sizes = data(other(tmp_path / "other.tsv", "x y1", "y y1"))
    assert {split: len(same_sizes.samples(split)) for split in ("train", "val", "test")} == {
        split: n for split, n in state["samples"].items() if split != "pairs"
    }
    with pytest.raises(Exception, match="not the samples that this run has learnt from") as error:
        go_on(same_sizes, state)
    assert "\n" not in str(error.value)
    go_on(data(tmp_path / "other.tsv"), state, fn="validate")
    with pytest.raises(Exception, match="not the samples that this run has learnt from"):
        go_on(data(file, target_length=6), state | {"settings": state["settings"] | {"target_length": 6}})


def test_what_an_old_checkpoint_does_not_say_is_not_asked(file: Path) -> None:
    made = data(file)
    old = {"samples": {split: len(made.samples(split)) for split in ("train", "val", "test")}}
    go_on(data(file), old)
    old["samples"]["val"] += 1
    with pytest.raises(Exception, match="not the samples that this run has learnt from"):
        go_on(data(file), old)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tokens", ["characters", "words", "bpe"])
def test_a_state_brings_vocabularies_and_lengths_back(file: Path, tmp_path: Path, tokens: str, shared: bool) -> None:
    if tokens == "bpe":
        pytest.importorskip("tokenizers")
    asked: dict[str, Any] = {"target_tokens": tokens, "source_tokens": tokens, "shared_vocabulary": shared}
    asked["vocab_size"] = 290
    learnt = data(file, **asked)
    torch.save(learnt.state_dict(), tmp_path / "state")
    now = data(written(tmp_path / "b.tsv", [f"long {i} {'q' * i}\tz {i} !" for i in range(150)]), **asked)
    assert {k: v for k, v in now.shape.items() if k != "decode"} != {
        k: v for k, v in learnt.shape.items() if k != "decode"
    }
    now.recall(torch.load(tmp_path / "state", weights_only=True))
    assert {k: v for k, v in now.shape.items() if k != "decode"} == {
        k: v for k, v in learnt.shape.items() if k != "decode"
    }
    text = LINES[3].partition("\t")[2]
    (tokens_of_text,) = learnt.target_tokenizer.encode_many([text])
    assert now.target_tokenizer.encode_many([text]) == [tokens_of_text]
    assert now.shape["decode"](tokens_of_text) == text
    assert (now.source_tokenizer is now.target_tokenizer) == shared
    batch = now.collate(now.samples("val"))
    assert int(batch["target"].max()) < learnt.shape["target_vocab_size"]
    assert batch["source"].shape[1] <= learnt.shape["source_length"]
    if tokens != "bpe":
        assert (batch["target"] == UNKNOWN).any()
    assert batch["references"] == [sample.references for sample in now.samples("val")]


def test_another_way_to_cut_texts_than_was_learnt_with_is_refused(file: Path) -> None:
    state = data(file, source_length=20).state_dict()
    for wrong, message in (
        ({"target_tokens": "words"}, "target_tokens='words' is not what this run has learnt with: 'characters'"),
        ({"source_length": 30}, "source_length=30 is not what this run has learnt with: 20"),
        ({"shared_vocabulary": True}, "shared_vocabulary=True is not what this run has learnt with: False"),
    ):
        with pytest.raises(ArgumentError, match=message):
            data(file, **wrong).recall(state)


def test_too_long_pairs_are_counted_anew(file: Path, tmp_path: Path) -> None:
    state = data(file, source_length=6, target_length=5).state_dict()
    made = data(file)
    assert made.notes() == []
    made.recall(state)
    assert made.notes() == data(file, source_length=6, target_length=5).notes() != []
