"""The straight line of a run: assemble -> fit -> test -> summary. It knows no task and no measure by name."""

import math
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import OmegaConf

from ticks import contract
from ticks.assemble import Assembled, assemble, enter_next_phase
from ticks.job import Job, relative
from ticks.phases import at, directory_of, save_config, shares
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
        if self.is_zero:
            self._begin()
        self._train(self.job.checkpoint)
        while not self.made.phase.is_last:
            self._end_phase()
            self.made = enter_next_phase(self.made, self.job, before=self._totals(), me=self.me)
            if self.is_zero:
                self._announce()
            self._train(None)
        made = self.made
        trainer, task, data, ledger = made.trainer, made.parts.task, made.parts.data, made.strategy.ledger
        final = self.run_dir / "checkpoints" / "final.ckpt"
        trainer.save_checkpoint(made.strategy.broadcast(str(final)))
        if self.is_zero and (stopped := final.with_name("stopped.ckpt")).exists():
            made.strategy.remove_checkpoint(stopped)
        self._measure_the_end()
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
            rows=[row for row in made.record.file.rows() if int(row["step"]) > made.phase.begin],
        )
        show_result(summary, rows, shown=shown, picture=relative(picture) if picture else None)
        log_result(trainer.loggers, summary, [*rows[0], *rows[1]], shown=shown, picture=picture)
        return summary

    def _train(self, checkpoint: str | None) -> None:
        """This phase, from a checkpoint in it or from its beginning."""
        made = self.made
        if checkpoint is None:
            self.before = self._measure("val")
            begun = [row.get("timeline/phase") for row in made.record.file.rows()] if self.is_zero else []
            if made.phase.name is not None and made.phase.name not in begun:  # it may have been stopped right there
                made.record.happened(made.trainer, "phase", made.phase.name)
        made.trainer.fit(made.parts.task, datamodule=made.parts.data, ckpt_path=checkpoint)

    def _measure_the_end(self) -> None:
        """What was trained, unless it has been measured."""
        last = self.made.record.last_val
        if last is None or last[0] != self.made.trainer.global_step:
            self._measure("val")
        self._refuse_a_lost_model()

    def _end_phase(self) -> None:
        """Leave a phase that is over as a run of its own."""
        made, name = self.made, str(self.made.phase.name)
        self.job = at(self.job, made.strategy.broadcast(self.job.run_dir))
        place = directory_of(Path(self.job.run_dir), name)
        if self.is_zero:
            save_config(place, self.job, name, made.phase.job.config | {"run_dir": str(place)})
        final = made.strategy.broadcast(str(place / "checkpoints" / "final.ckpt"))
        made.record.phase = replace(made.phase, ended=made.trainer.global_step).state()
        made.trainer.save_checkpoint(final)
        self._measure_the_end()
        if self.is_zero:
            about = self._about("finished") | {"run_dir": str(place), "checkpoint": final}
            file.write(place, about | {"phases": [self._row()]})

    def _totals(self) -> dict[str, Any]:
        """What the run has come to."""
        made = self.made
        tokens = made.record.tokens_after(made.strategy.step)
        return done(made.strategy, made.parts.task, seconds=made.record.seconds(), tokens=tokens)

    def _row(self) -> dict[str, Any]:
        """Of this phase, for the run's summary."""
        made, totals, val = self.made, self._totals(), self._last_val()
        about: dict[str, Any] = {"name": made.phase.name, "begin": made.phase.begin}
        about |= {"steps": made.strategy.step - made.phase.begin} | shares(totals, made.phase.before)
        about |= {"n_params": totals["n_params"], "n_trainable": totals["n_trainable"]}
        measures = made.measures or contract.measures_of(made.parts.task, val)
        return about | {f"val_{m.name}": val.get(m.name) for m in measures}

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
        self._announce()
        config = self.job.config | {"phases": self.job.phases or None} | {"choices": self.job.choices}
        log_config(made.trainer.loggers, config, self.job.coordinates)

    def _announce(self) -> None:
        made = self.made
        notes = made.notes(made.phase.job.choices)
        if made.phase.name is not None:
            print(f"phase {made.phase.name}: steps {made.phase.begin + 1} to {made.phase.end}", flush=True)
        announce(self.run_dir, made.trainer, made.parts.task, made.parts.data, made.worker_batch_size, notes)

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
        extra |= {"phase_configs": job.phases} if job.phases else {}
        with replacing(self.run_dir / "config.yaml") as scratch:  # killed meanwhile, a run keeps what it had
            OmegaConf.save(OmegaConf.create(self.job.config | extra), scratch)

    def _last_val(self) -> dict[str, float]:
        """The last measures on the validation data, by name."""
        return contract.evaluated((self.made.record.last_val or (0, {}))[1], "val")

    def _first_validation(self) -> dict[str, float]:
        """A resumed run's validation before its first step, or its last phase's, from its record."""
        first: dict[str, float] = {}
        for row in self.made.record.file.rows():
            said = {key: value for key, value in row.items() if value}
            if row["step"] == str(self.made.phase.begin):
                first = contract.evaluated(_numbers(said), "val") or first
        return first

    # ---- summary

    def summarise(
        self, tests: Mapping[str, float] | None = None, gaps: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """Write summary.json as things stand."""
        about = self._about(self.status)
        if self.made.phase.name is not None:
            about["phases"] = [*self._rows_before(), self._row()]
        return file.write(self.run_dir, about | self._judged(tests) | dict(gaps or {}))

    def _rows_before(self) -> list[dict[str, Any]]:
        """Of the phases that are over."""
        names = list(self.job.phases)
        over = names[: names.index(str(self.made.phase.name))]
        return [row for name in over for row in file.read(directory_of(self.run_dir, name))["phases"]]

    def _judged(self, tests: Mapping[str, float] | None) -> dict[str, Any]:
        made, val = self.made, self._last_val()
        return judged(made.measures or contract.measures_of(made.parts.task, val), val, tests or {})

    def _about(self, status: str) -> dict[str, Any]:
        """All of a summary but test measures and gaps."""
        made = self.made
        about = {
            "status": status,
            "seed": made.config.seed,
            "run_dir": str(self.run_dir),
            "checkpoint": self.checkpoint,
            "config_digest": self.job.config_digest,
            "versions": file.versions(),
        }
        about |= chosen(made.phase.job.choices, made.strategy, uses_model=made.parts.uses_model)
        return about | self._totals() | self._judged(None)

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
