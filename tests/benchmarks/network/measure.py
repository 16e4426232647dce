"""One measurement, as each worker runs it: some warm-up steps, then whole rounds between two barriers.

Presets are trained as `train.py strategy=NAME` would, by Lightning's Trainer, without validation and checkpoints; the
others by their own loops (../others.py) on the same model, data and optimizer. Only the clock is replaced: a tick every
`interval` steps, and a first, short round within the warm-up, so that what a first tick allocates is not counted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from tests.benchmarks.network.link import sent
from tests.benchmarks.network.workers import Report
from ticks.assemble import parts, trainer_of
from ticks.config import build, compose_strictly

CONFIGS = Path(__file__).parents[3] / "configs"
WORKERS = 4
NEVER = "never talking"
BEYOND = 10**6  # an interval, in steps, that no measurement reaches


@dataclass(frozen=True)
class Model:
    """What `train.py` is given for it, and the sequences of 64 bytes each worker takes a step. The rest is for
    estimates: parameters, and seconds a step takes where four workers share two processors."""

    overrides: tuple[str, ...]
    sequences: int
    parameters: int
    seconds: float


MODELS = {
    "default": Model(("model=ln_ticks", "optimizer=adamw"), 8, 842_560, 0.15),
    # one sequence, because four workers share the processors of one machine and a step should not take seconds; the
    # less is computed per step, the more the network decides
    "large": Model(
        ("model=ln_ticks", "model.d_model=384", "model.n_layers=6", "model.n_heads=6", "optimizer=adamw",
         "optimizer.lr=1e-3", "schedule.warmup_steps=20"), 1, 10_819_680, 0.3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What to measure: `steps` steps of `method` after `warmup` + `lead` steps, at `rate` Mbit/s.

    Bytes are counted from the end of the warm-up. Where messages travel while workers compute, that is a moment when
    none does, and the clock starts only after `lead` more steps, when things are as they will be.

    A method is NEVER, one of ../others.py, or a preset of configs/strategy, further overrides of it after a blank:
    "diloco strategy/wire=int8".
    """

    method: str
    model: str
    rate: float
    interval: int
    warmup: int = 4
    lead: int = 0
    steps: int = 8


def compose(model: str, *overrides: str) -> DictConfig:
    """The configuration of one worker among WORKERS nodes."""
    chosen = MODELS[model]
    batch = f"data.global_batch_size={WORKERS * chosen.sequences}"
    sizes = ["trainer.devices=1", f"trainer.num_nodes={WORKERS}", batch]
    rest = ["trainer.accelerator=cpu", "+trainer.logger=false", "+trainer.enable_checkpointing=false"]
    return compose_strictly([*chosen.overrides, *sizes, *rest, *overrides], CONFIGS)


def configure(job: Job) -> DictConfig:
    """The job's configuration: a preset by its name, its clock replaced. Training would go on after what is measured:
    the last round of a run is another than those before."""
    strategy: list[str] = []
    if job.method == NEVER:
        strategy = ["strategy=ticks", "strategy/sync=parameters"]
    elif is_preset(job.method):
        name, *more = job.method.split()
        strategy = [f"strategy={name}", *more]
    length = job.warmup + job.lead + job.steps + 2 * job.interval + 8
    config = compose(job.model, "trainer.limit_val_batches=0", f"trainer.max_steps={length}", *strategy)
    if strategy and "clock" in config.strategy:
        set_interval(config.strategy, job)
    return config


def set_interval(strategy: DictConfig, job: Job) -> None:
    """Ticks every `interval` steps and nothing else over time: no phase of DDP first, no other clock."""
    clock: dict[str, Any] = {"_target_": "ticks.strategy.clock.EverySteps", "interval": BEYOND}
    if job.method != NEVER:
        rounds = [[0, job.warmup], [job.warmup, job.interval]] if job.interval > 1 else [[0, 1]]
        clock = {"_target_": "ticks.strategy.clock.Schedule", "intervals": rounds}
    with open_dict(strategy):
        strategy.clock = OmegaConf.create(clock)
        if "ddp_steps" in strategy:
            strategy.ddp_steps = 0
        if "inner_interval" in strategy.sync:  # pairs of workers, four times a round, over the same slow network
            strategy.sync.group_size = WORKERS // 2
            strategy.sync.inner_interval = max(1, job.interval // 4)


def presets() -> list[str]:
    """The names that `strategy=` takes, DDP first."""
    names = {file.stem for file in (CONFIGS / "strategy").glob("*.yaml")} - {"base"}
    return sorted(names, key=lambda name: (name != "ddp", name))


def is_preset(method: str) -> bool:
    return method.split()[0] in presets()


class Meter:
    """Told of every step that ends; reports after the last."""

    def __init__(self, job: Job, report: Report, ledger: Callable[[], int] | None = None) -> None:
        self.job = job
        self.report = report
        self.ledger = ledger or (lambda: 0)
        self.step = 0

    def step_ended(self) -> None:
        self.step += 1
        job = self.job
        if self.step == job.warmup:
            self.before = self._counts()
        if self.step == job.warmup + job.lead:
            dist.barrier()
            self.started = time.perf_counter()
        if self.step == job.warmup + job.lead + job.steps:
            seconds = time.perf_counter() - self.started
            counts = [now - then for now, then in zip(self._counts(), self.before, strict=True)]
            per_step = [count / (job.lead + job.steps) for count in counts]
            self.report({"seconds": seconds} | dict(zip(("sent", "own", "booked"), per_step, strict=True)))

    def _counts(self) -> tuple[int, int, int]:
        """Bytes by the interface, of them TCP's own, and bytes by the ledger, when all that was sent has left."""
        dist.barrier()
        if self.job.lead:
            while sent_in(0.3) > 3000:
                pass
            dist.barrier()
        return *sent(), self.ledger()


def sent_in(seconds: float) -> int:
    """Bytes sent while waiting so long."""
    before, _ = sent()
    time.sleep(seconds)
    return sent()[0] - before


class Steps(Callback):
    """The meter of a Lightning run."""

    def __init__(self, job: Job, report: Report) -> None:
        self.job, self.report = job, report

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        ledger = getattr(trainer.strategy, "ledger", None)
        self.meter = Meter(self.job, self.report, None if ledger is None else lambda: ledger.bytes_sent)

    def on_train_batch_end(self, *_: Any) -> None:
        self.meter.step_ended()


def measure(job: Job, report: Report) -> None:
    """Run the job on this worker and report {"seconds", "sent", "own", "booked"}, all but the first per step."""
    torch.manual_seed(0)
    config = configure(job)
    if is_preset(job.method) or job.method == NEVER:
        fit(config, build(config.strategy, "strategy"), [Steps(job, report)])
    else:
        from tests.benchmarks import others

        others.run(job, config, report)
    raise AssertionError("training ended before it was measured")


def fit(config: DictConfig, strategy: Any, callbacks: list[Callback]) -> LightningModule:
    """Train as train.py does, without its record, checkpoints and summary."""
    made = parts(config, {})
    data, task = made.data, made.task
    trainer = trainer_of(config, data, strategy=strategy, callbacks=callbacks)
    trainer.fit(task, datamodule=data)
    return task
