"""Configurations of the small runs, and runs that are made once and kept: uninterrupted ones to compare with, stopped
ones to damage."""

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.faults.runs import Run

STEPS = 160
EVERY = 40  # steps between checkpoints and validations
SMALL = ("debug=fast", "model.dropout=0.1", "data.global_batch_size=6", f"trainer.max_steps={STEPS}",
         f"trainer.val_check_interval={EVERY}", "trainer.limit_val_batches=1",
         "trainer.limit_test_batches=1", "trainer.accelerator=cpu")  # fmt: skip
SEVERAL_ROUNDS = {  # presets whose published rounds are longer than these runs
    "adacomm": ("strategy.clock.interval=8", "strategy.clock.block_steps=20"),
    "diloco": ("strategy.clock.interval=24",),
    "local_sgd_int4": ("strategy.clock.intervals=[[0,2],[80,3]]",),
    "post_local_sgd": ("schedule.warmup_steps=40",),
    "slowmo": ("strategy.clock.interval=12",),
    "streaming_diloco": ("strategy.clock.interval=24", "model.n_layers=4"),
}
COMPARED = ("parameters", "gradients", "optimizers", "random", "exchange")  # of a worker's own file


class Kept:
    """What is made once under `root`, by whichever process needs it first."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self.env = {
            "TICKS_CACHE": str(self.root / "cache"),
            "WANDB_MODE": "offline",
            "NETRC": os.devnull,
            "MPLCONFIGDIR": str(self.root / "matplotlib"),
        }
        os.environ.pop("WANDB_API_KEY", None)

    @contextmanager
    def _once(self, name: str) -> Iterator[Path | None]:
        """A scratch directory that becomes root/name, or None if that is there already."""
        with (self.root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (self.root / name / "about.json").exists():
                yield None
                return
            shutil.rmtree(self.root / name, ignore_errors=True)
            yield self.root / name

    def arguments(self, preset: str, workers: int, *, text: bool = False) -> list[str]:
        """The command line of a small run."""
        data = ["data=text", "data.path=text.txt"] if text else []
        return [*SMALL, f"strategy={preset}", *SEVERAL_ROUNDS.get(preset, ()), f"trainer.devices={workers}", *data]

    def text(self) -> bytes:
        """What runs with a text file learn from."""
        return "".join(f"Sentence {i} says {i * i % 997} of {i % 89}.\n\n" for i in range(6000)).encode()

    def reference(self, preset: str, workers: int, *, text: bool = False, system: str = "ticks") -> tuple[Path, float]:
        """The final checkpoint of the uninterrupted run, and the seconds the whole run took."""
        name = f"{system}-{preset}-{workers}{'-text' if text else ''}"
        with self._once(name) as directory:
            if directory is not None:
                directory.mkdir()
                if text:
                    (directory / "text.txt").write_bytes(self.text())
                arguments = [str(workers)] if system == "lightning" else self.arguments(preset, workers, text=text)
                start = "real" if system == "lightning" else "forked"
                with Run(directory, arguments, env=self.env, system=system, start=start) as run:
                    if not run.wait(300, gone=False) or run.code:
                        raise RuntimeError(f"the uninterrupted run of {name} failed ({run.code}):\n{run.output}")
                (directory / "about.json").write_text(json.dumps({"seconds": run.seconds}))
        about = json.loads((self.root / name / "about.json").read_text())
        return final_checkpoint(self.root / name), about["seconds"]

    def import_seconds(self) -> float:
        """How much longer `python train.py` takes than a forked start."""
        with self._once("imports") as directory:
            if directory is not None:
                directory.mkdir()
                lengths = {}
                for start in ("forked", "real"):
                    short = [*self.arguments("ticks", 1), "trainer.max_steps=2", "test=false", "task.sample_bytes=0"]
                    with Run(directory / start, short, env=self.env, start=start) as run:
                        run.wait(120, gone=False)
                    lengths[start] = run.seconds
                about = {"seconds": max(0.0, lengths["real"] - lengths["forked"])}
                (directory / "about.json").write_text(json.dumps(about))
        return json.loads((self.root / "imports" / "about.json").read_text())["seconds"]

    def stopped(self, preset: str, workers: int, *, text: bool = False) -> Path:
        """The directory of a run that SIGTERM stopped after its second checkpoint."""
        name = f"stopped-{preset}-{workers}{'-text' if text else ''}"
        with self._once(name) as directory:
            if directory is not None:
                for _ in range(5):
                    shutil.rmtree(directory, ignore_errors=True)
                    directory.mkdir()
                    if text:
                        (directory / "text.txt").write_bytes(self.text())
                    with Run(directory, self.arguments(preset, workers, text=text), env=self.env) as run:
                        steps = "logs/runs/*/checkpoints/step-*.ckpt"
                        while len(list(directory.glob(steps))) < 2 and run.poll() is None:
                            time.sleep(0.005)
                        run.send(signal.SIGTERM, [run.pid])
                        in_time = run.wait(60)
                    if in_time and run.code == 128 + signal.SIGTERM:
                        break
                else:
                    raise RuntimeError(f"no stopped run of {name} ({run.code}):\n{run.output}")
                (directory / "about.json").write_text("{}")
        return self.root / name


def run_directory(directory: Path) -> Path | None:
    """The newest run below `directory` that can be resumed."""
    runs = [file.parent for file in directory.glob("logs/runs/*/config.yaml")]
    return max(runs, key=lambda run: run.stat().st_mtime_ns, default=None)


def summary(run: Path | None) -> dict[str, Any]:
    """A run's summary.json; {} if there is none or it cannot be read."""
    try:
        return json.loads((run / "summary.json").read_text()) if run else {}
    except (OSError, ValueError):
        return {}


def checkpoints(directory: Path) -> list[Path]:
    """Every checkpoint below `directory`, oldest first."""
    found = []
    for file in directory.glob("logs/runs/*/checkpoints/*.ckpt"):
        try:
            found.append((file.stat().st_mtime_ns, file))
        except OSError:  # gone just now
            continue
    return [file for _, file in sorted(found)]


def final_checkpoint(directory: Path) -> Path:
    """The newest final.ckpt below `directory`. FileNotFoundError if no run finished."""
    finals = [file for file in checkpoints(directory) if file.name == "final.ckpt"]
    if not finals:
        raise FileNotFoundError(f"no final.ckpt below {directory}")
    return finals[-1]


def difference(ours: Path, reference: Path) -> str | None:
    """The first place where two final checkpoints differ, those of single workers included; None if they are equal."""
    mine, theirs = (torch.load(path, map_location="cpu", weights_only=True) for path in (ours, reference))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        if where := _differs(mine[key], theirs[key], key):
            return where
    files = [sorted(path.with_suffix(".workers").glob("*.pt"), key=_rank) for path in (ours, reference)]
    if [_rank(f) for f in files[0]] != [_rank(f) for f in files[1]]:
        return f"workers' files are {[f.name for f in files[0]]} instead of {[f.name for f in files[1]]}"
    for file, other in zip(*files, strict=True):
        own, whole = (torch.load(path, map_location="cpu", weights_only=True) for path in (file, other))
        for key in COMPARED:
            if where := _differs(own.get(key), whole.get(key), f"worker {_rank(file)}'s {key}"):
                return where
    return None


def _rank(file: Path) -> str:
    return file.stem.rpartition("-rank")[2]


def _differs(mine: Any, theirs: Any, where: str) -> str | None:
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = mine.shape == theirs.shape and mine.dtype == theirs.dtype and torch.equal(mine, theirs)
        return None if same else where
    if type(mine) is not type(theirs):
        return where
    if isinstance(mine, dict):
        if mine.keys() != theirs.keys():
            return f"{where} (other keys)"
        return next((d for key in mine if (d := _differs(mine[key], theirs[key], f"{where}.{key}"))), None)
    if isinstance(mine, list | tuple):
        if len(mine) != len(theirs):
            return f"{where} (other length)"
        pairs = enumerate(zip(mine, theirs, strict=True))
        return next((d for i, (a, b) in pairs if (d := _differs(a, b, f"{where}.{i}"))), None)
    both_nan = mine != mine and theirs != theirs
    return None if mine == theirs or both_nan else where
