"""Sequence to sequence: the loss by hand, measures of any number of workers, exact resuming, words that are shown."""

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import REPOSITORY, only_run, run_command, run_workers
from ticks.assemble import parts
from ticks.config import ConfigError, compose_strictly
from ticks.data import PairFiles
from ticks.models import EncoderDecoder
from ticks.tasks import SequenceToSequence, Transcription
from ticks.tasks.metrics import Chrf

SAID = ["K AE T", "D AO", "", "B IY T S"]
RIGHT = [("K AE T",), ("D AO G", "D AA G Z", "D AO"), ("AH", "AH B"), ("B EH T",)]


class Table(nn.Module):
    """Logits of the next token that depend on the token before it alone; it writes what it was told to write."""

    def __init__(self, said: list[list[int]] | None = None) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.arange(16.0).view(4, 4).sin())
        self.said = said or []
        self.beams: list[int] = []

    def forward(self, source_BxS: Tensor, target_BxT: Tensor) -> Tensor:
        return self.rows[target_BxT]

    def decode(self, source_BxS: Tensor, *, beam: int, length_penalty: float) -> Tensor:
        self.beams.append(beam)
        rows = [self.said[int(row[0])] for row in source_BxS]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows]).view(len(rows), longest)


BATCH = {"source": torch.tensor([[3], [3]]), "target": torch.tensor([[1, 3, 2, 0], [1, 3, 3, 2]])}


def by_hand(smoothing: float) -> float:
    """The mean over the five tokens that are no padding."""
    log_p = Table().rows.detach().log_softmax(1)
    tokens = [(1, 3), (3, 2), (1, 3), (3, 3), (3, 2)]
    return -sum(float((1 - smoothing) * log_p[a, b] + smoothing * log_p[a].mean()) for a, b in tokens) / 5


def test_the_loss_is_the_cross_entropy_by_hand_with_and_without_smoothing() -> None:
    task = SequenceToSequence(Table(), decode=str)
    assert task.loss(BATCH).item() == pytest.approx(by_hand(0.0), rel=1e-6)
    assert task.loss(BATCH, label_smoothing=0.3).item() == pytest.approx(by_hand(0.3), rel=1e-6)
    assert float(task.loss(BATCH, reduction="sum")) == pytest.approx(5 * by_hand(0.0), rel=1e-6)


def test_padding_changes_no_loss() -> None:
    padded = {"source": BATCH["source"], "target": torch.cat([BATCH["target"], torch.zeros(2, 3, dtype=torch.long)], 1)}
    task = SequenceToSequence(Table(), decode=str)
    assert float(task.loss(padded)) == pytest.approx(float(task.loss(BATCH)), rel=1e-6)


def silent(task: SequenceToSequence) -> dict[str, Any]:
    """What the task logs, in place of a trainer."""
    logged: dict[str, Any] = {}
    task.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
    return logged


def test_labels_are_smoothed_while_training_alone() -> None:
    task = SequenceToSequence(Table([[3], [3], [3], [3]]), decode=str, label_smoothing=0.3)
    logged = silent(task)
    assert float(task.training_step(BATCH, 0)) == pytest.approx(by_hand(0.3), rel=1e-6)
    task.validation_step(BATCH | {"references": [("a",), ("b",)]}, 0)
    assert float(logged["val/loss"].compute()) == pytest.approx(by_hand(0.0), rel=1e-6)


def test_validation_is_greedy_and_the_test_data_have_the_beam() -> None:
    task = SequenceToSequence(Table([[3]] * 4), decode=str, beam=5)
    silent(task)
    for step in (task.validation_step, task.test_step):
        step(BATCH | {"references": [("a",), ("b",)]}, 0)
    assert task.model.beams == [1, 5]


def test_phonemes_are_held_against_the_nearest_of_those_listed() -> None:
    task = Transcription(Table(), decode=str)
    task.score("val", SAID[:2], RIGHT[:2])
    task.score("val", SAID[2:], RIGHT[2:])
    # 0 of 3; 0 of "D AO"'s 2; 1 of "AH"'s 1; 2 of 3: one replaced, one too many
    assert float(task.metric("val", "phoneme_error_rate").compute()) == pytest.approx(3 / 9)
    assert float(task.metric("val", "word_error_rate").compute()) == pytest.approx(2 / 4)


def _measured(share: list[list[int]]) -> list[float]:
    import os

    import torch.distributed as dist

    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=len(share))
    result = measured(share[rank])
    dist.destroy_process_group()
    return result


def measured(samples: list[int]) -> list[float]:
    task, chrf = Transcription(Table(), decode=str), Chrf()
    for i in samples:
        task.score("val", [SAID[i]], [RIGHT[i]])
        chrf.update([SAID[i]], [RIGHT[i]])
    rates = [float(task.metric("val", name).compute()) for name in ("phoneme_error_rate", "word_error_rate")]
    return [*rates, float(chrf.compute())]


def test_workers_with_unequal_shares_measure_what_one_does() -> None:
    alone = measured([0, 1, 2, 3])
    assert 0 < alone[2] < 100
    assert run_workers(2, _measured, [[0, 2, 3], [1]]) == [alone, alone]


def test_ngrams_are_counted_exactly_whatever_the_precision_around() -> None:
    metrics = nn.ModuleDict({"chrf": Chrf()}).to(torch.bfloat16)
    for _ in range(3):
        metrics["chrf"].update(["a" * 3001], [("a" * 3001,)])
    assert metrics["chrf"].counts[0].tolist() == [9003.0] * 3
    metrics["chrf"].reset()
    assert float(metrics["chrf"].compute()) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label_smoothing": 1.5}, "label_smoothing=1.5 must be from 0 to 1"),
        ({"beam": 0}, "beam=0 must be at least 1"),
        ({"length_penalty": -1.0}, "length_penalty=-1.0 must not be negative"),
        ({"n_shown": -1}, "n_shown=-1 must be at least 0"),
        ({"model": nn.Linear(2, 2)}, "model='Linear' must have a method decode, as EncoderDecoder has"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceToSequence(**({"model": Table(), "decode": str} | wrong))


# ---- whole runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with pairs: letters, and each of them twice."""
    place = tmp_path_factory.mktemp("pairs")
    drawn = random.Random(0)
    words = {"".join(drawn.choices("abcdef", k=drawn.randrange(2, 8))) for _ in range(700)}
    lines = [f"{word}\t{' '.join(letter.upper() for letter in word for _ in range(2))}" for word in sorted(words)]
    (place / "pairs.tsv").write_text("\n".join(lines))
    return place


SMALL = (
    "data=pairs", "data.path=pairs.tsv", "data.target_tokens=words", "data.global_batch_size=16", "task.beam=2",
    "model=encoder_decoder", "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "task=transcription",
    "strategy.clock.interval=4", "trainer.devices=2", "trainer.max_steps=24", "trainer.val_check_interval=12",
    "trainer.log_every_n_steps=1", "callbacks.checkpoint.every_n_train_steps=13", "schedule.warmup_steps=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(place: Path) -> tuple[Path, str]:
    code, output = run_command(place, *SMALL)
    assert code == 0, output
    return only_run(place), output


def test_it_learns_is_judged_and_shows_what_it_makes_of_the_data(trained: tuple[Path, str]) -> None:
    run, output = trained
    about = json.loads((run / "summary.json").read_text())
    assert (about["measure"], about["better"], about["tokens"]) == ("phoneme_error_rate", "lower", None)
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    losses = [float(row["val/loss"]) for row in rows if row.get("val/loss")]
    assert losses[-1] < 0.9 * losses[0]
    assert math.isclose(about["val_loss"], losses[-1])
    assert 0 < about["test_phoneme_error_rate"] < 1.5

    assert output.count("true:") == 11


def test_it_is_resumed_exactly_within_an_epoch(trained: tuple[Path, str]) -> None:
    run, _ = trained
    final = run / "checkpoints" / "final.ckpt"
    whole = torch.load(final, weights_only=True)["state_dict"]
    before = json.loads((run / "summary.json").read_text())
    final.unlink()
    code, output = run_command(run.parents[2], f"resume={run}")
    assert code == 0, output
    assert "step-00000013.ckpt" in output
    again = torch.load(final, weights_only=True)["state_dict"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    about = json.loads((run / "summary.json").read_text())
    names = ("phoneme_error_rate", "word_error_rate", "loss")
    assert all(about[f"{split}_{name}"] == before[f"{split}_{name}"] for split in ("val", "test") for name in names)


def test_one_worker_measures_the_same(trained: tuple[Path, str]) -> None:
    run, _ = trained
    about = json.loads((run / "summary.json").read_text())
    code, output = run_command(run.parents[2], "eval", f"run={run}", "trainer.devices=1", program="ticks")
    assert code == 0, output
    found = dict(line.split()[:2] for line in output.splitlines() if line.startswith(("val", "test")))
    for name in ("phoneme_error_rate", "word_error_rate", "loss"):
        for split in ("val", "test"):
            assert float(found[f"{split}_{name}"]) == pytest.approx(about[f"{split}_{name}"], rel=1e-5), name


def test_other_pairs_are_judged_with_what_was_learnt_and_not_learnt_from(trained: tuple[Path, str]) -> None:
    run, _ = trained
    place = run.parents[2]
    before = (place / "pairs.tsv").read_text()
    lines = before.splitlines()
    (place / "more.tsv").write_text("\n".join([*lines, *(f"z{i}\tZ Z {i}" for i in range(100))]))
    code, output = run_command(
        place, "eval", f"run={run}", "data.path=more.tsv", "trainer.devices=1", "test=false", program="ticks"
    )
    assert code == 0, output
    assert "val_phoneme_error_rate" in output
    (place / "pairs.tsv").write_text(before[:-1] + ("A" if before[-1] != "A" else "B"))
    try:
        code, output = run_command(place, f"resume={run}", "trainer.max_steps=26")
    finally:
        (place / "pairs.tsv").write_text(before)
    assert code == 2, output
    assert "error: data: these are not the samples that this run has learnt from" in output
    assert "Traceback" not in output


def test_texts_are_judged_by_chrf_and_shown_with_what_is_right(place: Path) -> None:
    data = PairFiles(path=str(place / "pairs.tsv"), global_batch_size=8)
    shape = dict(data.shape)
    task = SequenceToSequence(
        EncoderDecoder(**{k: v for k, v in shape.items() if k != "decode"}, d_model=8, n_layers=1, n_heads=2),
        decode=shape["decode"], n_shown=3,
    )  # fmt: skip
    task.train()
    shown = str(task.show(data))
    assert task.training
    assert (shown.count("said: "), shown.count("true: ")) == (3, 3)
    first = shown.splitlines()[0]
    assert first in [sample.source_text for sample in data.samples("test")]
    assert f"true: {data.samples('test')[len(data.samples('test')) // 6].references[0]}" in shown
    task.n_shown = 0
    assert task.show(data) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.path=nowhere.tsv",), "data.path='nowhere.tsv' is no file in "),
        (("data.path=null",), "data.path=None is not set: give a file with a source, a tab"),
        (("data.source_length=1",), "data.source_length=1 must be at least 2 tokens"),
        (("task.beam=0",), "task.beam=0 must be at least 1"),
        (("model.n_heads=3",), "model.n_heads=3 must divide d_model=32"),
    ],
)
def test_a_mistake_is_one_line_before_training(
    overrides: tuple[str, ...], message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    config = compose_strictly([*SMALL, *overrides], REPOSITORY / "configs")
    with pytest.raises(ConfigError) as error:
        parts(config, {"data": "pairs"})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_model_of_another_kind_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    config = compose_strictly(["data=pairs", "data.path=pairs.tsv", "task=transcription"], REPOSITORY / "configs")
    with pytest.raises(
        ConfigError, match="model: DecoderTransformer needs vocab_size, block_size, which data=pairs does"
    ):
        parts(config, {"data": "pairs"})
