"""Weights & Biases through Lightning's WandbLogger: offline without a key, properly finished also on failure."""

import http.client
import json
import os
import secrets
import ssl
import sys
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ticks.arguments import above
from ticks.strategy.lightning import OpenWandbLogger

ONE_TRY = 5.0  # seconds after which a server that accepts and does not answer is asked again


class UnfailingWandbLogger(OpenWandbLogger):
    """Goes on offline where the server cannot be reached within `timeout` seconds, and without W&B where its process is
    gone: metrics.csv has everything."""

    def __init__(self, *, timeout: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.timeout = timeout
        self.lost = False

    @contextmanager
    def unless_lost(self) -> Iterator[None]:
        """Once W&B is gone, which is said once, nothing in such a block is an error any more."""
        try:
            yield
        except MisconfigurationException:  # a mistake, which W&B refuses before a run begins
            raise
        except Exception as error:  # W&B's own and those of a connection
            if not self.lost:
                _say_lost(error)
            self.lost = True

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.unless_lost():
            super().log_metrics(metrics, step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        with self.unless_lost():
            super().log_hyperparams(params)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        with self.unless_lost():
            super().after_save_checkpoint(checkpoint_callback)

    def finalize(self, status: str) -> None:
        with self.unless_lost():
            super().finalize(status)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        with self.unless_lost():
            if not self.has_begun and not self.lost:
                self._begin()
        return DummyExperiment() if self.lost else super().experiment

    def _begin(self) -> None:
        """MisconfigurationException for what W&B refuses; offline for a server that cannot be used."""
        import wandb

        try:
            if not self.is_offline:
                server = wandb.setup().settings.base_url
                if answers(server, self.timeout):
                    self.wandb_arguments["settings"] = wandb.Settings(init_timeout=self.timeout)
                    try:
                        super().experiment  # noqa: B018  # it begins when it is asked for
                    except wandb.errors.CommError as error:
                        self._go_offline(f"{server} cannot be used: {str(error).splitlines()[0][:200]}")
                else:
                    self._go_offline(f"{server} has not answered for {self.timeout:g} s")
            super().experiment  # noqa: B018
        except (wandb.errors.UsageError, ValueError, TypeError) as error:
            raise MisconfigurationException(f"logger.wandb: {str(error).splitlines()[0][:300]}") from None

    def _go_offline(self, why: str) -> None:
        import wandb

        wandb.teardown()  # what has begun would hold the run's id
        print(f"W&B: {why}; this run is logged offline, `wandb sync` uploads it later", file=sys.stderr, flush=True)
        self.go_offline()


def _say_lost(error: Exception) -> None:
    print(f"W&B: nothing more is logged there ({type(error).__name__}: {error}); metrics.csv goes on", flush=True)


def answers(server: str, seconds: float) -> bool:
    """Whether anything answers HTTP at `server` within so many seconds; says after a while how not to wait."""
    began, told = time.monotonic(), False
    while (left := began + seconds - time.monotonic()) > 0:
        try:
            urllib.request.urlopen(server, timeout=min(left, ONE_TRY)).close()
            return True
        except urllib.error.HTTPError:  # it refuses, so it is there
            return True
        except (OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", None), ssl.SSLError):  # W&B has certificates of its own
                return True
        if not told:
            print(
                f"W&B: {server} does not answer; going on offline after {seconds:g} s (logger.wandb.timeout), at once"
                " with logger.wandb.offline=true or WANDB_MODE=offline",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            told = True
        time.sleep(max(0.0, min(1.0, began + seconds - time.monotonic())))
    return False


def wandb_logger(
    *,
    run_dir: str,
    project: str = "ticks",
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    offline: bool | None = None,
    log_checkpoints: bool = True,
    timeout: float = 30.0,
) -> WandbLogger:
    """A logger whose run has the same id each time `run_dir` is continued.

    `offline` null means: online exactly if a key is there. A server that does not answer within `timeout` seconds is
    done without. Online and with `log_checkpoints`, checkpoints become artifacts. Under a W&B agent the agent's own run
    is continued. On workers other than 0 it is a logger that writes nothing, looks for no key and makes no file.
    ArgumentError for a timeout that is no positive number.
    """
    above(0, of=" seconds", timeout=timeout)
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return WandbLogger(project=project, name=name, save_dir=run_dir, offline=True)
    mode = os.environ.get("WANDB_MODE")
    if offline is None and mode:
        offline = mode != "online"
    elif offline is None:
        offline = not _has_key()
        if offline:
            print("W&B: no key found, so this run is logged offline; `wandb sync` uploads it later", flush=True)
    wandb_mode = "disabled" if mode == "disabled" else "offline" if offline else None
    return UnfailingWandbLogger(
        timeout=timeout,
        project=project,
        entity=entity,
        name=name,
        group=group,
        tags=tags,
        save_dir=run_dir,
        id=_run_id(Path(run_dir)),
        resume="allow",
        offline=offline,
        log_model=bool(log_checkpoints and not offline),
        mode=wandb_mode,  # said to wandb.init itself: asking for a key has read the environment
    )


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return bool(wandb.login(prompt=False))


def _run_id(run_dir: Path) -> str:
    """The id kept in the run's directory, made the first time; under a W&B agent it is the agent's."""
    file = run_dir / "wandb_id.json"
    if not file.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"id": os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)}) + "\n")
    return json.loads(file.read_text())["id"]


def log_config(loggers: list[Any], config: dict[str, Any], coordinates: dict[str, str]) -> None:
    """The resolved configuration under its own key (a swept key would replace a nested one), and sweep coordinates."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            with logger.unless_lost() if isinstance(logger, UnfailingWandbLogger) else nullcontext():
                logger.experiment.config.update(
                    {"resolved": config, "sweep_coordinates": coordinates}, allow_val_change=True
                )


def log_result(
    loggers: list[Any],
    summary: Mapping[str, Any],
    rows: Sequence[tuple[str, str, str]],
    *,
    shown: str | None = None,
    picture: Path | None = None,
) -> None:
    """The summary under a key of its own, the result table, and what the task has to show: a text or a picture."""
    for logger in loggers:
        if isinstance(logger, UnfailingWandbLogger):
            with logger.unless_lost():
                import wandb

                said: dict[str, Any] = {"result": wandb.Table(columns=["result", "before", "after"], data=list(rows))}
                if shown:
                    said["sample"] = wandb.Table(columns=["sample"], data=[[shown]])
                if picture:
                    said["picture"] = wandb.Image(str(picture))
                logger.experiment.log(said)
                logger.experiment.summary["run"] = dict(summary)


def finish(exit_code: int) -> None:
    """End the process's W&B run, if there is one, as finished (0) or failed."""
    if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
        try:
            wandb.finish(exit_code=exit_code)
        except Exception as error:
            _say_lost(error)
