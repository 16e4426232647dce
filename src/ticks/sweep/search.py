"""`method: bayes`: Optuna chooses each job by what those before it came to (pip install -e ".[search]").

What it has asked for stands in the sweep's folder, so that a second call goes on where the first one was.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ticks.config import ConfigError
from ticks.jobs import Outcome
from ticks.sweep.file import Sweep, distribution

ASKED = "asked.json"


class Search:
    """Draws jobs by a tree-structured Parzen estimator. ConfigError without Optuna, or for what it cannot draw."""

    def __init__(self, sweep: Sweep, folder: Path, count: int) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigError(f'{sweep.file}: method=bayes needs optuna: pip install -e ".[search]"') from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        goal: Any = sweep.metric.get("goal", "minimize")
        if goal not in ("minimize", "maximize") or "name" not in sweep.metric:
            raise ConfigError(f"{sweep.file}: metric={sweep.metric} must have a name and a goal, minimize or maximize")
        self.key = str(sweep.metric["name"]).replace("/", "_")
        self.sweep = sweep
        self.count = count
        self.file = folder / ASKED
        self._optuna = optuna
        self._space = {key: self._distribution(key, spec) for key, spec in sweep.parameters.items()}
        self.asked: list[dict[str, Any]] = self._known()
        # another seed than the draws that are known already came from
        sampler = optuna.samplers.TPESampler(seed=len(self.asked), n_startup_trials=min(10, max(3, count // 3)))
        self._study: Any = optuna.create_study(direction=goal, sampler=sampler)
        self._trials: dict[int, Any] = {}

    def _known(self) -> list[dict[str, Any]]:
        return json.loads(self.file.read_text()) if self.file.exists() else []

    def _distribution(self, key: str, spec: dict[str, Any]) -> Any:
        made, kind = self._optuna.distributions, distribution(spec)
        choices = [spec["value"]] if kind == "constant" else spec.get("values")
        if choices is not None:
            return made.CategoricalDistribution(choices)
        log, plain = "log" in kind, kind.removeprefix("q_")
        try:
            if plain == "int_uniform":
                return made.IntDistribution(spec["min"], spec["max"])
            if plain in ("uniform", "log_uniform_values"):
                step = spec.get("q") if kind.startswith("q_") and not log else None
                return made.FloatDistribution(float(spec["min"]), float(spec["max"]), log=log, step=step)
        except (KeyError, ValueError) as error:
            raise ConfigError(f"{self.sweep.file}: parameters.{key}: {kind} {error}") from None
        known = "int_uniform, uniform, q_uniform, log_uniform_values, or values"
        raise ConfigError(f"{self.sweep.file}: parameters.{key}.distribution={kind}: a search takes {known}")

    def jobs(self) -> Iterator[dict[str, Any]]:
        """The values of each job: first those that were asked for before, here or by another search in this folder."""
        for number in range(self.count):
            with self._alone():
                self.asked = self._known()
                if number < len(self.asked):
                    self._study.enqueue_trial(self.asked[number])
                trial = self._study.ask(self._space)
                if number == len(self.asked):
                    self.asked.append(dict(trial.params))
                    scratch = self.file.with_suffix(".partial")
                    scratch.write_text(json.dumps(self.asked))
                    scratch.replace(self.file)
            self._trials[number] = trial
            yield dict(trial.params)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other search in this folder asks in the block."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def hear(self, number: int, about: dict[str, Any], outcome: Outcome) -> None:
        """What job `number` (from 0) came to; a failure, and what measured nothing, is told as one."""
        value = about.get(self.key) if outcome.status == "finished" else None
        failed = self._optuna.trial.TrialState.FAIL
        trial = self._trials[number]
        if isinstance(value, int | float):
            self._study.tell(trial, value)
        else:
            self._study.tell(trial, state=failed)
