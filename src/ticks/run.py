"""The straight line of a run: assemble -> fit -> test -> summary. It knows no task and no measure by name."""

import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import OmegaConf

from ticks import contract
from ticks.assemble import Assembled, assemble
from ticks.job import Job, relative
from ticks.record import summary as file
from ticks.record.account import announce, chosen, done, judged
from ticks.record.result import result_rows, show_result
from ticks.record.wandb import log_config, log_result
from ticks.strategy import NonFiniteLoss, Refused
from ticks.strategy.checkpoint import replacing
from ticks.strategy.identity import Identity


class Run:
    """What is done with what a run is made of."""

    made: Assembled

    def __init__(self, job: Job, me: Identity, worker_command: list[str]) -> None:
        self.job = job
        self.me = me
        self.worker_command = worker_command
        self.is_zero = me.rank == 0
        self.run_dir = Path(job.run_dir)
        self.before: dict[str, float] = {}
        self.status = "failed"
        self.checkpoint: str | None = None  # the last one written when the run ended
        self.began = False  # whether this worker has a summary to keep

    def assemble(self) -> None:
        """Build everything in this process. ConfigError before any other worker is started."""
        self.made = assemble(self.job, self.me, self.worker_command)

    # ---- how it is

    @property
    def _assembled(self) -> bool:
        return hasattr(self, "made")

    @property
    def is_training(self) -> bool:
        return self._assembled and self.made.strategy.is_training

    @property
    def has_trained(self) -> bool:
        """Whether a step was done or begun in this process."""
        return self._assembled and self.made.record.has_begun

    @property
    def launcher(self) -> Any:
        """The one that started this machine's other workers, if it was built yet."""
        return self.made.strategy.launcher if self._assembled else None

    # ---- fit

    def fit(self) -> dict[str, Any] | None:
        """Train, then measure the agreed model on all of the validation and test data."""
        made = self.made
        trainer, task, data, ledger = made.trainer, made.parts.task, made.parts.data, made.strategy.ledger
        if self.is_zero:
            self._begin()
        if self.job.checkpoint is None:
            self.before = self._measure("val")
        trainer.fit(task, datamodule=data, ckpt_path=self.job.checkpoint)
        final = self.run_dir / "checkpoints" / "final.ckpt"
        trainer.save_checkpoint(made.strategy.broadcast(str(final)))
        if self.is_zero and (stopped := final.with_name("stopped.ckpt")).exists():
            made.strategy.remove_checkpoint(stopped)
        last = made.record.last_val
        if last is None or last[0] != trainer.global_step:
            self._measure("val")
        self._refuse_a_lost_model()
        tests = self._measure("test") if made.config.test else {}
        shown, picture = (self._after(self._shown) if self.is_zero else None) or (None, None)
        gaps = self._gaps() if made.config.get("gap") else {}  # behind what is shown, which is of the last evaluation
        if not self.is_zero:
            return None
        self.status = "finished"
        self.checkpoint = relative(final)
        summary = self.summarise(tests, gaps)
        rows = result_rows(
            summary,
            measures=made.measures or contract.measures_of(task, self._last_val()),
            before=self.before or self._first_validation(),
            baselines=self._after(lambda: contract.baselines_of(data)) or {},
            ddp_bytes=ledger.ddp_bytes,
            measuring_bytes=ledger.measuring_bytes,
            rows=made.record.file.rows(),
        )
        show_result(summary, rows, shown=shown, picture=relative(picture) if picture else None)
        log_result(trainer.loggers, summary, [*rows[0], *rows[1]], shown=shown, picture=picture)
        return summary

    def _after(self, ask: Callable[[], Any]) -> Any:
        """What `ask` gives, once the result is safe; a note and None if it fails: it costs nobody a finished run."""
        try:
            return ask()
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{frame.filename}:{frame.lineno}"
            print(f"note: not shown: {type(error).__name__}: {error} ({where})", file=sys.stderr, flush=True)
            return None

    def _shown(self) -> tuple[str | None, Path | None]:
        """What the task has to show: a text, or a picture."""
        task = self.made.parts.task
        shown: Any = getattr(task, "show", lambda data: None)(self.made.parts.data)
        if not isinstance(shown, str | None) and not hasattr(shown, "savefig"):
            found = f"{type(task).__name__}.show gives a {type(shown).__name__}"
            raise TypeError(f"{found}: it must be a text, a matplotlib Figure or None")
        if not hasattr(shown, "savefig"):
            return shown, None
        path = self.run_dir / "sample.png"
        shown.savefig(path, dpi=150)
        return None, path

    def _begin(self) -> None:
        """What there is of a run before its first step."""
        made = self.made
        self.save_config()
        self.began = True
        self.status = "running"
        self.summarise()
        self.status = "failed"
        notes = made.notes(self.job.choices)
        announce(self.run_dir, made.trainer, made.parts.task, made.parts.data, made.worker_batch_size, notes)
        config = self.job.config | {"choices": self.job.choices}
        log_config(made.trainer.loggers, config, self.job.coordinates)

    def _measure(self, split: str, checkpoint: str | None = None) -> dict[str, float]:
        """The measures of a split by name; {} where there is nothing to measure, or it was switched off."""
        data, task = self.made.parts.data, self.made.parts.task
        hook = {"val": "validation_step", "test": "test_step"}[split]
        if not is_overridden(hook, task, LightningModule):
            return {}
        if not is_overridden(f"{split}_dataloader", data, LightningDataModule):
            return {}
        do = self.made.trainer.validate if split == "val" else self.made.trainer.test
        results = do(task, datamodule=data, ckpt_path=checkpoint, verbose=False)
        merged = {key: value for of_loader in results or () for key, value in of_loader.items()}
        found = contract.evaluated(merged, split)
        if split == "val":
            self._refuse_a_measure_that_is_none(found)
        return found

    def _gaps(self) -> dict[str, float]:
        """By how much each measure of the validation data is above that of what was learnt from."""
        trainer, data = self.made.trainer, cast(Any, self.made.parts.data)
        loggers, trainer.loggers = trainer.loggers, []  # to which it would be a test
        try:
            (results,) = trainer.test(self.made.parts.task, dataloaders=data.split_dataloader("train"), verbose=False)
        finally:
            trainer.loggers = loggers
        learnt, val = contract.evaluated(results, "test"), self._last_val()
        return {f"gap_{name}": val[name] - value for name, value in learnt.items() if name in val}

    def _refuse_a_measure_that_is_none(self, found: Mapping[str, float]) -> None:
        """Refused, on every worker, if a task is judged by what it does not log."""
        if missing := [m.name for m in self.made.measures[:1] if found and m.name not in found]:
            logged = ", ".join(f"val/{name}" for name in found)
            raise Refused(
                f"task: {type(self.made.parts.task).__name__} is judged by {missing[0]}, but logged: {logged}"
            )

    def _refuse_a_lost_model(self) -> None:
        """NonFiniteLoss, on every worker, if what was trained cannot be measured: a tick sees parameters only."""
        step, metrics = self.made.record.last_val or (0, {})
        for name in dict.fromkeys(["val/loss", *(f"val/{m.name}" for m in self.made.measures)]):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise NonFiniteLoss(
                    f"{name} is {metrics[name]} after step {step}: lower the learning rate or clip gradients"
                )

    def newest_checkpoint(self) -> str | None:
        """The last one that was written."""
        files = [(path.stat().st_mtime, str(path)) for path in (self.run_dir / "checkpoints").glob("*.ckpt")]
        return max(files)[1] if files else None

    def save_config(self) -> None:
        """config.yaml: all that `resume` and `ticks eval` need."""
        job = self.job
        extra = {"choices": job.choices, "config_digest": job.config_digest, "coordinates": job.coordinates}
        extra |= {"earlier_digests": job.earlier_digests} if job.earlier_digests else {}
        with replacing(self.run_dir / "config.yaml") as scratch:  # killed meanwhile, a run keeps what it had
            OmegaConf.save(OmegaConf.create(self.job.config | extra), scratch)

    def _last_val(self) -> dict[str, float]:
        """The last measures on the validation data, by name."""
        return contract.evaluated((self.made.record.last_val or (0, {}))[1], "val")

    def _first_validation(self) -> dict[str, float]:
        """A resumed run's validation before its first step, from its record."""
        for row in self.made.record.file.rows():
            said = {key: value for key, value in row.items() if value}
            if row["step"] == "0" and (found := contract.evaluated(_numbers(said), "val")):
                return found
        return {}

    # ---- summary

    def summarise(
        self, tests: Mapping[str, float] | None = None, gaps: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """Write summary.json as things stand."""
        made, val = self.made, self._last_val()
        about = {
            "status": self.status,
            "seed": made.config.seed,
            "run_dir": str(self.run_dir),
            "checkpoint": self.checkpoint,
            "config_digest": self.job.config_digest,
            "versions": file.versions(),
        }
        about |= chosen(self.job.choices, made.strategy, uses_model=made.parts.uses_model)
        tokens = contract.tokens_per_step(made.parts.data)
        about |= done(made.strategy, made.parts.task, seconds=made.record.seconds(), tokens_per_step=tokens)
        about |= judged(made.measures or contract.measures_of(made.parts.task, val), val, tests or {})
        return file.write(self.run_dir, about | dict(gaps or {}))

    # ---- evaluate

    def evaluate(self) -> dict[str, Any] | None:
        """The validation and test measures of the run's newest checkpoint."""
        measured = {f"val_{name}": value for name, value in self._measure("val", self.job.checkpoint).items()}
        if self.made.config.test:
            measured |= {f"test_{name}": value for name, value in self._measure("test", self.job.checkpoint).items()}
        return measured | {"checkpoint": self.job.checkpoint}


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    """What of a row can be read as numbers."""
    found = {}
    for key, text in row.items():
        try:
            found[key] = float(text)
        except ValueError:
            continue
    return found
