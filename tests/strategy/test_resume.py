"""Resume is exact: stopped anywhere, a resumed run ends with bit-identical parameters on every worker."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.optim import SGD
from torch.utils.data import DataLoader

from tests.conftest import WorkerError, run_workers
from tests.faults.damage import plant
from tests.faults.kept import difference
from tests.strategy.toys import Snapshots, Stream, Toy, flat, trainer_for
from ticks.strategy import DDP, Gradients, Outer, Parameters, TickStrategy, meeting
from ticks.strategy.checkpoint import damage, newest_usable, worker_file, workers_directory
from ticks.strategy.shutdown import Stopped

STEPS = 17
STRATEGIES = {
    "gradients": lambda: TickStrategy(interval=5, sync=Gradients()),
    "parameters": lambda: TickStrategy(interval=5, sync=Parameters()),
    "ddp": lambda: DDP(),
}


def train(
    name: str, n: int, directory: Path, *, steps: int = STEPS, resume: str | None = None, every: int = 0, **options: Any
) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    toy, snapshots = Toy(dropout=0.3), Snapshots()
    callbacks: list[Any] = [snapshots]
    if every:
        saver = ModelCheckpoint(
            directory, filename="{step}", every_n_train_steps=every, save_top_k=-1, save_on_train_epoch_end=False
        )
        callbacks.append(saver)
        options["enable_checkpointing"] = True
    trainer = trainer_for(STRATEGIES[name](), n, steps=steps, callbacks=callbacks, **options)
    trainer.fit(toy, ckpt_path=resume)
    strategy = trainer.strategy
    return {
        "final": flat(toy),
        "after": snapshots.after,
        "optimizer": [v for s in trainer.optimizers[0].state.values() for v in s.values()],
        "ledger": (strategy.ledger.ticks, strategy.ledger.bytes_sent, strategy.ledger.ddp_bytes),
        "dropped": strategy.dropped,
    }


def same(resumed: list[dict], whole: list[dict]) -> None:
    for mine, theirs in zip(resumed, whole, strict=True):
        assert torch.equal(mine["final"], theirs["final"])
        assert all(torch.equal(mine["after"][s], theirs["after"][s]) for s in mine["after"])
        assert all(torch.equal(a, b) for a, b in zip(mine["optimizer"], theirs["optimizer"], strict=True))
        assert mine["ledger"] == theirs["ledger"]


@pytest.fixture(scope="module", params=[(n, name) for n in (1, 2) for name in STRATEGIES], ids=str)
def whole_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, Path, Any]:
    """How many workers, which strategy, where it has saved after every step, and what its workers ended with."""
    n, name = request.param
    directory = tmp_path_factory.mktemp("whole")
    return n, name, directory, run_workers(n, lambda: train(name, n, directory, every=1))


@pytest.mark.parametrize("stop", [3, 5, 13])
def test_resuming_after_any_step_is_bit_exact(stop: int, whole_run: tuple[int, str, Path, Any], tmp_path: Path) -> None:
    n, name, directory, whole = whole_run
    resumed = run_workers(n, lambda: train(name, n, tmp_path, resume=str(directory / f"step={stop}.ckpt")))
    same(resumed, whole)
    if n == 2 and name != "ddp" and stop % 5:
        assert not torch.equal(resumed[0]["after"][stop + 1], resumed[1]["after"][stop + 1])


@pytest.mark.parametrize("name", ["gradients", "ddp"])
def test_resuming_three_workers_is_bit_exact(name: str, tmp_path: Path) -> None:
    """With three, the order of a sum shows."""
    whole = run_workers(3, lambda: train(name, 3, tmp_path, every=1))
    same(run_workers(3, lambda: train(name, 3, tmp_path / "again", resume=str(tmp_path / "step=7.ckpt"))), whole)


@pytest.mark.parametrize("name", ["gradients", "ddp"])
def test_resuming_from_a_checkpoint_written_by_a_validation_is_bit_exact(name: str, tmp_path: Path) -> None:
    """A validation in the middle of a round, with dropout: the swap and the random state must both be right."""

    def job(resume: str | None = None) -> dict[str, Any]:
        pl.seed_everything(0, verbose=False)
        toy, snapshots = Toy(dropout=0.3), Snapshots()
        saver = ModelCheckpoint(tmp_path, filename="val-{step}", monitor="val/loss", save_top_k=-1)
        trainer = trainer_for(
            STRATEGIES[name](), 2, steps=STEPS, callbacks=[snapshots, saver], enable_checkpointing=True,
            val_check_interval=7, limit_val_batches=1.0,
        )  # fmt: skip
        trainer.fit(toy, ckpt_path=resume)
        return {"final": flat(toy), "after": snapshots.after}

    whole = run_workers(2, job)
    resumed = run_workers(2, job, str(tmp_path / "val-step=7.ckpt"))
    for mine, theirs in zip(resumed, whole, strict=True):
        assert min(mine["after"]) == 8
        assert torch.equal(mine["final"], theirs["final"])


class LongValidation(Toy):
    """Validates on so many batches; `asks` gets SIGTERM in the fourth batch of validation `when`. Nobody: None."""

    def __init__(self, batches: int, *, asks: bool | None, when: int) -> None:
        super().__init__(dropout=0.3)
        self.batches, self.asks, self.when = batches, asks, when
        self.validated: list[int] = []
        self.asked_at: float | None = None

    def val_dataloader(self) -> DataLoader:
        return DataLoader([next(iter(Stream(99)))] * self.batches, batch_size=None)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.validated += [0] if batch_idx == 0 else []
        self.validated[-1] += 1
        if self.asks and batch_idx == 3 and len(self.validated) == self.when:
            self.asked_at = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
        if self.asks is not None and batch_idx >= 3:
            time.sleep(0.05)


class ActsUponEval(LongValidation):
    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()


class ActsUponStart(Callback):
    def on_validation_start(self, *_: Any) -> None:
        pass


class Called:
    def __call__(self, *_: Any) -> None:
        pass


def validating(
    name: str,
    directory: Path,
    batches: tuple[int, ...],
    asks: int | None = None,
    when: int = 1,
    resume: str | None = None,
    *,
    module: type[LongValidation] = LongValidation,
    callbacks: Callable[[], list[Callback]] = list,
    **options: Any,
) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    rank = int(os.environ["LOCAL_RANK"])
    toy = module(batches[rank], asks=None if asks is None else asks == rank, when=when)
    strategy = STRATEGIES[name]()
    strategy.heartbeat_seconds = 0.1
    saver = ModelCheckpoint(directory, filename="val-{step}", monitor="val/loss", save_top_k=-1)
    options = {"steps": STEPS, "val_check_interval": 7, "limit_val_batches": 1.0} | options
    trainer = trainer_for(
        strategy, len(batches), callbacks=[saver, *callbacks()], enable_checkpointing=True, **options
    )  # fmt: skip
    code = None
    try:
        trainer.fit(toy, ckpt_path=resume)
    except Stopped as stop:
        code = (stop.code, stop.step)
    return {"final": flat(toy), "validated": toy.validated, "code": code, "trains": toy.net.training,
            "asked": toy.asked_at, "ended": time.monotonic()}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "batches", "asks", "when"),
    [
        ("gradients", (100,), 0, 1),
        ("parameters", (100, 100), 1, 2),
        ("gradients", (100, 1), 0, 1),  # one waits for the other, with its last batch behind it
        ("gradients", (1, 100), 1, 2),
        ("ddp", (5, 100), 0, 1),
    ],
    ids=str,
)
def test_a_validation_is_left_for_a_stop_and_begun_anew_on_resuming(
    name: str, batches: tuple[int, ...], asks: int, when: int, tmp_path: Path
) -> None:
    n, place, step = len(batches), tmp_path / "run", 7 * when
    whole = run_workers(n, validating, name, tmp_path / "whole", batches)
    assert [w["validated"] for w in whole] == [[b, b] for b in batches]
    stopped = run_workers(n, validating, name, place, batches, asks, when)
    for worker, count in zip(stopped, batches, strict=True):
        assert worker["code"] == (143, step)
        assert worker["validated"][-1] < 80 or worker["validated"][-1] == count
        assert worker["ended"] - stopped[asks]["asked"] < 10
        assert worker["trains"]
    if name == "parameters":  # in the middle of a round: each has its own back
        assert not torch.equal(stopped[0]["final"], stopped[1]["final"])
    assert (place / "stopped.ckpt").exists()
    assert not (place / f"val-step={step}.ckpt").exists()
    resumed = run_workers(n, validating, name, place, batches, None, 1, str(place / "stopped.ckpt"))
    assert [r["validated"] for r in resumed] == [[b] * (3 - when) for b in batches]
    assert all(torch.equal(mine["final"], theirs["final"]) for mine, theirs in zip(resumed, whole, strict=True))
    assert {file.name for file in place.glob("val-*.ckpt")} == {"val-step=7.ckpt", "val-step=14.ckpt"}
    again = run_workers(n, validating, name, tmp_path, batches, None, 1, str(place / f"val-step={step}.ckpt"))
    assert [r["validated"] for r in again] == [[b] * (2 - when) for b in batches]  # this one was not left


@pytest.mark.parametrize(
    "acts",
    [
        {"module": ActsUponEval},
        {"callbacks": lambda: [ActsUponStart()]},
        {"callbacks": lambda: [LambdaCallback(on_validation_start=Called())]},
        {"steps": 7},  # behind the last step: a resumed run would not begin it anew
    ],
    ids=["module", "callback", "lambda", "last"],
)
def test_a_validation_that_cannot_be_left_is_finished_before_a_stop(acts: dict[str, Any], tmp_path: Path) -> None:
    """What was begun with it (other weights put in the place of the module's, say) is ended only then."""
    stopped = run_workers(2, partial(validating, **acts), "gradients", tmp_path, (20, 20), 1)
    assert [(worker["code"], worker["validated"]) for worker in stopped] == [((143, 7), [20])] * 2
    assert (tmp_path / "val-step=7.ckpt").exists()


def test_a_stop_in_a_validation_in_the_middle_of_a_step_loses_no_gradient(tmp_path: Path) -> None:
    accumulating = partial(validating, accumulate_grad_batches=4, val_check_interval=6, steps=6)
    whole = run_workers(1, accumulating, "gradients", tmp_path / "whole", (20,))
    stopped = run_workers(1, accumulating, "gradients", tmp_path / "run", (20,), 0)
    assert [(worker["code"], worker["validated"]) for worker in stopped] == [((143, 2), [20])]
    again = str(tmp_path / "run" / "stopped.ckpt")
    resumed = run_workers(1, accumulating, "gradients", tmp_path / "run", (20,), None, 1, again)
    assert torch.equal(resumed[0]["final"], whole[0]["final"])


def test_a_checkpoint_holds_the_mean_of_the_workers_and_plain_lightning_loads_it(tmp_path: Path) -> None:
    first, second = run_workers(2, lambda: train("gradients", 2, tmp_path, every=3))
    checkpoint = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    mean = (first["after"][3] + second["after"][3]) / 2
    loaded = torch.cat([v.flatten() for v in checkpoint["state_dict"].values()])
    assert torch.allclose(loaded, mean, atol=1e-7)

    def plainly() -> int:
        trainer = trainer_for(DDPStrategy(), 1, steps=5)
        trainer.fit(Toy(dropout=0.3), ckpt_path=str(tmp_path / "step=3.ckpt"), weights_only=True)
        return trainer.global_step

    assert run_workers(1, plainly) == [5]


def test_another_number_of_workers_starts_from_the_agreed_model_and_says_what_was_dropped(tmp_path: Path) -> None:
    run_workers(2, lambda: train("gradients", 2, tmp_path, every=3))
    path = str(tmp_path / "step=3.ckpt")
    results = run_workers(3, lambda: train("gradients", 3, tmp_path / "again", steps=5, resume=path))
    assert all("written by 2 workers, now there are 3" in r["dropped"] for r in results)
    assert torch.equal(results[0]["after"][5], results[2]["after"][5])


def test_a_failed_write_is_told_on_every_worker_and_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    def job() -> None:
        import ticks.strategy.checkpoint as files

        real = files.save_worker

        def full_disk(path: Any, token: str, rank: int, state: Any) -> None:
            if rank == 1 and state["step"] == 6:
                raise OSError(28, "No space left on device")
            real(path, token, rank, state)

        files.save_worker = full_disk
        train("gradients", 2, tmp_path, every=3)

    with pytest.raises(WorkerError) as error:
        run_workers(2, job)
    assert str(error.value).count("worker 1 could not write checkpoint") >= 2
    assert newest_usable(tmp_path)[0] == tmp_path / "step=3.ckpt"
    assert not (tmp_path / "step=6.ckpt").exists()


def test_a_write_interrupted_halfway_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """The same name written twice, the second time killed while the file is written: as SIGKILL would do."""
    run_workers(1, lambda: train("gradients", 1, tmp_path, steps=3, every=3))
    path = tmp_path / "last.ckpt"
    os.rename(tmp_path / "step=3.ckpt", path)
    os.rename(tmp_path / "step=3.workers", tmp_path / "last.workers")
    before = path.read_bytes()

    def killed() -> None:
        real = torch.save

        def half(obj: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            real(obj, file, *args, **kwargs)
            if "last.ckpt" in str(file):
                os.truncate(file, os.path.getsize(file) // 2)
                os._exit(9)

        torch.save = half
        pl.seed_everything(0, verbose=False)
        trainer = trainer_for(STRATEGIES["gradients"](), 1, steps=4)
        trainer.fit(Toy(dropout=0.3))
        trainer.save_checkpoint(path)

    with pytest.raises(WorkerError, match="died without a word"):
        run_workers(1, killed)
    assert path.read_bytes() == before
    assert newest_usable(tmp_path) == (path, [])


@pytest.mark.parametrize("victim", ["checkpoint", "worker file", "missing worker file", "truncated"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(victim: str, tmp_path: Path) -> None:
    run_workers(2, lambda: train("gradients", 2, tmp_path, steps=9, every=3))
    newest = tmp_path / "step=9.ckpt"
    assert newest_usable(tmp_path) == (newest, [])
    token = torch.load(newest, weights_only=True)["ticks"]["token"]
    broken = newest if victim in ("checkpoint", "truncated") else worker_file(newest, token, 1)
    content = bytearray(broken.read_bytes())
    if victim == "missing worker file":
        broken.unlink()
    elif victim == "truncated":
        broken.write_bytes(content[: len(content) // 2])
    else:
        for i in range(len(content) // 3, len(content) // 3 + 1000):  # one byte might be padding
            content[i] ^= 0xFF
        broken.write_bytes(content)
    os.utime(newest)
    assert damage(newest) is not None
    found, complaints = newest_usable(tmp_path)
    assert found == tmp_path / "step=6.ckpt"
    assert len(complaints) == 1
    assert str(newest) in complaints[0]


def test_worker_files_of_removed_checkpoints_go_with_them(tmp_path: Path) -> None:
    def job() -> None:
        pl.seed_everything(0, verbose=False)
        saver = ModelCheckpoint(
            tmp_path, filename="{step}", every_n_train_steps=2, monitor="step", mode="max", save_top_k=2
        )
        trainer_for(STRATEGIES["gradients"](), 2, steps=8, callbacks=[saver], enable_checkpointing=True).fit(Toy())

    run_workers(2, job)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step=6.ckpt", "step=6.workers", "step=8.ckpt", "step=8.workers",
    ]  # fmt: skip
    assert len(list((tmp_path / "step=8.workers").iterdir())) == 2


def test_saving_again_under_the_same_name_leaves_no_stale_worker_files(tmp_path: Path) -> None:
    def job() -> None:
        trainer = trainer_for(STRATEGIES["gradients"](), 2, steps=3)
        trainer.fit(Toy())
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        trainer.save_checkpoint(tmp_path / "x.ckpt")

    run_workers(2, job)
    assert len(list((tmp_path / "x.workers").iterdir())) == 2
    assert damage(tmp_path / "x.ckpt") is None
    shutil.rmtree(tmp_path / "x.workers")
    assert damage(tmp_path / "x.ckpt") is not None


def test_a_run_made_longer_keeps_its_ticks_at_multiples_of_the_interval(tmp_path: Path) -> None:
    def job(steps: int, resume: str | None) -> list[int]:
        pl.seed_everything(0, verbose=False)
        ticks: list[int] = []
        strategy = TickStrategy(interval=4)
        strategy.on_tick.append(lambda _: ticks.append(strategy.step))
        trainer = trainer_for(strategy, 2, steps=steps)
        trainer.fit(Toy(), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        return ticks

    assert run_workers(2, job, 10, None)[0] == [4, 8, 10]
    assert run_workers(2, job, 18, str(tmp_path / "end.ckpt"))[0] == [12, 16, 18]


class OwnValues(Toy):
    """A metric that each worker has its own values of, and orders in its own way."""

    VALUES: ClassVar[tuple[list[float], list[float]]] = ([4.0, 1.0, 2.0, 3.0], [1.0, 2.0, 4.0, 3.0])

    def __init__(self) -> None:
        super().__init__(dropout=0.3)
        self.values = iter(self.VALUES[int(os.environ["LOCAL_RANK"])])

    def on_validation_epoch_end(self) -> None:  # where nothing tells how many samples are behind a number
        self.log("val_loss", next(self.values))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test", self.loss(batch), sync_dist=True)

    test_dataloader = Toy.val_dataloader


def by_own_values(name: str, directory: Path, resume: str | None = None) -> dict[str, Any]:
    """12 steps with a validation every 3; the two best are kept, and a link to the last."""
    pl.seed_everything(0, verbose=False)
    saver = ModelCheckpoint(
        directory, monitor="val_loss", save_top_k=2, filename="{step}-{val_loss:.4f}", save_last="link"
    )
    options: dict[str, Any] = {"enable_checkpointing": True, "val_check_interval": 3, "limit_val_batches": 1.0}
    trainer = trainer_for(STRATEGIES[name](), 2, steps=12, callbacks=[saver], **options)
    trainer.fit(toy := OwnValues(), ckpt_path=resume)
    final = flat(toy)
    kept = sorted(saver.best_k_models), saver.best_model_path, saver.last_model_path
    trainer.test(toy, ckpt_path="best", verbose=False)
    return {"final": final, "kept": kept, "best": flat(toy)}


@pytest.mark.parametrize("name", ["parameters", "ddp"])
def test_worker_0_chooses_and_names_checkpoints_where_a_metric_differs(name: str, tmp_path: Path) -> None:
    whole = run_workers(2, by_own_values, name, tmp_path)
    best, second = tmp_path / "step=6-val_loss=1.0000.ckpt", tmp_path / "step=9-val_loss=2.0000.ckpt"
    for worker in whole:
        assert worker["kept"] == ([str(best), str(second)], str(best), str(tmp_path / "last.ckpt"))
        assert torch.equal(worker["best"], whole[0]["best"])
    left = {path.with_suffix(suffix) for path in (best, second) for suffix in (".ckpt", ".workers")}
    assert set(tmp_path.iterdir()) == left | {tmp_path / "last.ckpt"}
    assert all(len(list(path.iterdir())) == 2 for path in left if path.suffix == ".workers")
    for path in (second, tmp_path / "last.ckpt"):
        resumed = run_workers(2, by_own_values, name, tmp_path / path.stem, str(path))
        assert all(torch.equal(mine["final"], theirs["final"]) for mine, theirs in zip(resumed, whole, strict=True))


def test_a_copied_and_a_renamed_checkpoint_find_what_belongs_to_them(tmp_path: Path) -> None:
    whole = run_workers(2, lambda: train("gradients", 2, tmp_path, every=3))
    shutil.copy(tmp_path / "step=3.ckpt", tmp_path / "copy.v1")
    os.rename(tmp_path / "step=6.ckpt", tmp_path / "renamed.ckpt")
    assert workers_directory(tmp_path / "copy.v1") != workers_directory(tmp_path / "copy.v2")
    for name in ("copy.v1", "renamed.ckpt"):
        same(run_workers(2, lambda path=str(tmp_path / name): train("gradients", 2, tmp_path, resume=path)), whole)


def test_a_link_leaves_no_worker_files_of_the_checkpoint_in_whose_place_it_came(tmp_path: Path) -> None:
    def job(save_last: Any, steps: int, resume: str | None = None) -> None:
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=1, save_last=save_last)
        options = {"enable_checkpointing": True, "callbacks": [saver]}
        trainer_for(STRATEGIES["gradients"](), 2, steps=steps, **options).fit(Toy(), ckpt_path=resume)

    run_workers(2, job, True, 2)
    assert (tmp_path / "last.workers").exists()
    run_workers(2, job, "link", 6, str(tmp_path / "last.ckpt"))
    assert (tmp_path / "last.ckpt").is_symlink()
    assert not (tmp_path / "last.workers").exists()


def failing(directory: Path, alone: bool) -> list[str]:
    """What lies in `directory` after step 3 went wrong, on one worker or on both."""

    class Failing(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2 and (not alone or self.global_rank == 1):
                raise ArithmeticError("step 3")
            return super().training_step(batch, batch_idx)

    meeting.FAILURE_SECONDS = 1.0
    saver = ModelCheckpoint(directory, filename="saved", save_on_exception=True)
    own = OnExceptionCheckpoint(directory)
    own.teardown = lambda *_: None
    options = {"enable_checkpointing": True, "callbacks": [saver, own]}
    with pytest.raises((ArithmeticError, RuntimeError)):
        trainer_for(STRATEGIES["parameters"](), 2, steps=5, **options).fit(Failing())
    return sorted(path.name for path in directory.glob("*.ckpt"))


def test_an_exception_is_saved_if_all_workers_have_it_and_keeps_nobody_waiting_if_not(tmp_path: Path) -> None:
    both = run_workers(2, failing, tmp_path / "both", False)
    assert both[0] == ["on_exception.ckpt", "saved.ckpt"]
    assert run_workers(2, failing, tmp_path / "alone", True, timeout=30) == [[], []]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """step=3.ckpt and step=6.ckpt of two workers, with their files."""
    directory = tmp_path_factory.mktemp("whole")
    run_workers(2, lambda: train("gradients", 2, directory, steps=6, every=3))
    return directory


@pytest.mark.parametrize("raw", [True, False], ids=["bare pickle", "inside an archive"])
@pytest.mark.parametrize("victim", ["checkpoint", "worker file"])
def test_a_payload_is_refused_and_never_executed(raw: bool, victim: str, two_checkpoints: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(two_checkpoints, tmp_path / "run"))
    newest = directory / "step=6.ckpt"
    token = torch.load(newest, weights_only=True)["ticks"]["token"]
    plant(newest if victim == "checkpoint" else worker_file(newest, token, 1), tmp_path / "executed", raw=raw)
    os.utime(newest)
    found, (complaint,) = newest_usable(directory)
    assert found == directory / "step=3.ckpt"
    assert "\n" not in complaint
    assert len(complaint) < 400
    assert not (tmp_path / "executed").exists()


def test_the_damage_of_a_checkpoint_is_told_in_one_line_that_names_the_file(
    two_checkpoints: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(two_checkpoints, tmp_path / "run"))
    newest = directory / "step=6.ckpt"
    token = torch.load(newest, weights_only=True)["ticks"]["token"]
    worker_file(newest, token, 1).unlink()
    assert damage(newest) == f"step=6.workers/{token}-rank1.pt is missing"
    torch.save([1, 2], newest)
    assert damage(newest) == "step=6.ckpt holds a list"
    torch.save({"ticks": {"token": 3}}, newest)
    assert "\n" not in str(damage(newest))
    newest.write_bytes(b"")
    assert damage(newest) == "step=6.ckpt: File is not a zip file"


def test_a_checkpoint_that_another_run_wrote_is_not_taken_for_this_runs(two_checkpoints: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(two_checkpoints, tmp_path / "run"))
    for step, fingerprint in (("3", "mine"), ("6", "another")):
        checkpoint = torch.load(directory / f"step={step}.ckpt", weights_only=True)
        checkpoint["ticks"]["fingerprint"] = fingerprint
        torch.save(checkpoint, directory / f"step={step}.ckpt")
    found, (complaint,) = newest_usable(directory, ["mine", "mine before"])
    assert found == directory / "step=3.ckpt"
    assert "another run wrote it" in complaint
    assert newest_usable(directory)[0] == directory / "step=6.ckpt"  # nobody asked whose
    torch.save({"state_dict": {}, "global_step": 7}, directory / "plain.ckpt")
    assert newest_usable(directory, ["mine"])[0] == directory / "step=3.ckpt"
    del checkpoint["ticks"]["fingerprint"]  # as they were written once
    torch.save(checkpoint, directory / "step=6.ckpt")
    assert newest_usable(directory, ["mine"])[0] == directory / "step=6.ckpt"


@pytest.mark.parametrize("name", ["gradients", "outer"])
def test_resuming_a_run_that_has_reached_its_end_saves_the_same_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its last checkpoint, say: training never begins, and nothing that workers remember is lost."""
    monkeypatch.setitem(STRATEGIES, "outer", lambda: TickStrategy(interval=5, sync=Outer(partial(SGD, momentum=0.9))))

    def job(resume: str | None, end: str) -> None:
        pl.seed_everything(0, verbose=False)
        trainer = trainer_for(STRATEGIES[name](), 2, steps=6)
        trainer.fit(Toy(dropout=0.3), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / end)

    run_workers(2, job, None, "end.ckpt")
    run_workers(2, job, str(tmp_path / "end.ckpt"), "again.ckpt")
    assert difference(tmp_path / "again.ckpt", tmp_path / "end.ckpt") is None
