"""What people would use instead, on the same model, data and optimizer, in fp32: extra `bench`.

    lightning_ddp         Lightning's own DDPStrategy, with its broadcast at every batch
    lightning_ddp_bf16    the same with torch's bf16_compress_hook
    periodic_averager     torch's PeriodicModelAverager in a plain loop
    accelerate_local_sgd  accelerate's LocalSGD
    torchft_local_sgd     torchft's LocalSGD, with its lighthouse and one manager per worker
    torchft_diloco        torchft's DiLoCo
    torchft_streaming     the same with four fragments, delay 1, alpha 0.5

Those with an interval are told it with `set_interval` when a warm-up ends, so that what is measured is whole rounds.
"""

import importlib.util
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from tests.benchmarks.network.measure import Job, Meter, Steps, fit
from tests.benchmarks.network.workers import Report
from ticks.assemble import parts

FRAGMENTS = 4
LIGHTHOUSE_PORT = 29400
TIMEOUT = timedelta(minutes=30)


class DDPWithHook(DDPStrategy):
    """`DDPStrategy(ddp_comm_hook=bf16_compress_hook)` registers the hook on CUDA only and is silent about it: on a CPU
    it stays plain fp32 DDP. Registered by hand, torch refuses it by its name: "BF16 all reduce communication hook
    required CUDA 11+ and NCCL 2.10+ or XPU and XCCL". Under another name gloo runs it, so that is what is measured."""

    def _register_ddp_hooks(self) -> None:
        def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            return bf16_compress_hook(state, bucket)

        assert isinstance(self.model, DistributedDataParallel)
        self.model.register_comm_hook(None, hook)


class Loop(ABC):
    """One worker's plain training loop; subclasses add what is exchanged."""

    needs: str | None = None  # the package it is from
    least_interval = 1  # of what it can do
    least_warmup = 1  # steps

    def __init__(self, job: Job, config: DictConfig) -> None:
        dist.init_process_group("gloo", timeout=TIMEOUT)
        self.job = job
        self.clip = float(config.trainer.gradient_clip_val)
        # what data and task ask of a Trainer
        self.trainer = SimpleNamespace(
            world_size=dist.get_world_size(),
            global_rank=dist.get_rank(),
            global_step=0,
            accumulate_grad_batches=1,
            precision="32-true",
            estimated_stepping_batches=config.trainer.max_steps,
        )
        made = parts(config, {})
        data, self.task = made.data, made.task
        data.setup()
        data.trainer = self.task.trainer = self.trainer
        self.trainer.lightning_module = self.task
        self.batches = data.train_dataloader()
        chosen = self.task.configure_optimizers()
        self.optimizer, self.scheduler = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
        self.model: nn.Module = self.task.model
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, src=0)
        self.start()

    @abstractmethod
    def start(self) -> None:
        """Set up what is exchanged, with rounds of the warm-up's length."""

    @abstractmethod
    def set_interval(self, interval: int) -> None:
        """Rounds have this length from now on; one has just ended."""

    @abstractmethod
    def after_step(self) -> None:
        """Called after each optimizer step."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_gradients(self) -> None:
        clip_grad_norm_(self.model.parameters(), self.clip)

    def run(self, meter: Meter) -> None:
        for batch in self.batches:
            logits = self.model(batch["x"])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["y"].flatten(), ignore_index=-100)
            self.optimizer.zero_grad()
            self.backward(loss)
            self.clip_gradients()
            self.optimizer.step()
            self.after_step()
            self.scheduler.step()
            if meter.step + 1 == self.job.warmup:
                self.set_interval(self.job.interval)
            meter.step_ended()


class PeriodicAverager(Loop):
    def start(self) -> None:
        self.averager = PeriodicModelAverager(period=self.job.warmup)

    def set_interval(self, interval: int) -> None:
        self.averager.average_parameters(self.model.parameters())  # it averages after steps 1, 1 + H, 1 + 2H, ...
        self.averager.period, self.averager.step = interval, 1  # here after H, 2H, ...: as often

    def after_step(self) -> None:
        self.averager.average_parameters(self.model.parameters())


class AccelerateLocalSGD(Loop):
    needs = "accelerate"

    def start(self) -> None:
        from accelerate import Accelerator
        from accelerate.local_sgd import LocalSGD

        self.accelerator = Accelerator(cpu=True, mixed_precision="no")
        if self.accelerator.num_processes != self.trainer.world_size:
            raise RuntimeError(f"accelerate sees {self.accelerator.num_processes} workers ({self.accelerator.state})")
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(
            self.model, self.optimizer, self.scheduler
        )
        self.local_sgd = LocalSGD(self.accelerator, self.model, local_sgd_steps=self.job.warmup).__enter__()

    def set_interval(self, interval: int) -> None:
        self.local_sgd.local_sgd_steps, self.local_sgd.num_steps = interval, 0

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip_gradients(self) -> None:
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)

    def after_step(self) -> None:
        self.local_sgd.step()


class TorchftLocalSGD(Loop):
    """Every worker is a replica group of its own, as torchft's own tests start it; worker 0 runs the lighthouse."""

    needs = "torchft"

    def start(self) -> None:
        from torchft.coordination import LighthouseServer
        from torchft.manager import Manager
        from torchft.process_group import ProcessGroupGloo

        for name in ("torchft", "torchft.manager", "torchft.local_sgd"):
            logging.getLogger(name).setLevel(logging.ERROR)
        rank, address = dist.get_rank(), own_address()
        if rank == 0:
            self.lighthouse = LighthouseServer(
                bind=f"[::]:{LIGHTHOUSE_PORT}", min_replicas=dist.get_world_size(), join_timeout_ms=60_000
            )
        dist.barrier()
        self.store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        self.manager = Manager(
            pg=ProcessGroupGloo(timeout=TIMEOUT),
            load_state_dict=self.model.load_state_dict,
            state_dict=self.model.state_dict,
            min_replica_size=dist.get_world_size(),
            use_async_quorum=False,
            timeout=TIMEOUT,
            quorum_timeout=TIMEOUT,
            rank=0,
            world_size=1,
            store_addr=address,
            store_port=self.store.port,
            lighthouse_addr=f"http://{os.environ['MASTER_ADDR']}:{LIGHTHOUSE_PORT}",
            replica_id=f"worker_{rank}",
            hostname=address,
            init_sync=False,  # all start from worker 0's parameters already
        )
        self.method = self.build_method().__enter__()

    def build_method(self) -> Any:
        from torchft.local_sgd import LocalSGD

        return LocalSGD(self.manager, self.model, self.optimizer, sync_every=self.job.warmup)

    def set_interval(self, interval: int) -> None:
        assert self.method._local_step == 0, "a round has just ended"
        assert self.manager.current_step() > 0, f"nothing was committed: {self.manager.errored()}"
        self.method._sync_every = interval

    def after_step(self) -> None:
        if error := self.manager.errored():  # it would go on without exchanging anything
            raise RuntimeError(f"torchft gave up: {error}")


class TorchftDiLoCo(TorchftLocalSGD):
    def build_method(self) -> Any:
        from torchft.local_sgd import DiLoCo

        outer = torch.optim.SGD(self.model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
        return DiLoCo(self.manager, [self.model], self.optimizer, outer, sync_every=self.job.warmup)


class TorchftStreaming(TorchftLocalSGD):
    least_interval = 2 * FRAGMENTS  # a fragment must come back before the next is sent
    least_warmup = 2 * FRAGMENTS

    def build_method(self) -> Any:
        from torchft.local_sgd import DiLoCo

        fragments = [nn.ModuleList(modules) for modules in cut(leaves(self.model), FRAGMENTS)]
        outer = [torch.optim.SGD(f.parameters(), lr=0.7, momentum=0.9, nesterov=True) for f in fragments]
        options = {"fragment_sync_delay": 1, "fragment_update_alpha": 0.5}
        return DiLoCo(self.manager, fragments, self.optimizer, outer, sync_every=self.job.warmup, **options)

    def set_interval(self, interval: int) -> None:
        super().set_interval(interval // FRAGMENTS)  # it counts the steps between two fragments


def own_address() -> str:
    """This worker's address on the slow network: that of its connection to worker 0's namespace."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 1))
        return probe.getsockname()[0]


def leaves(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that hold the parameters, each parameter in the first that has it."""
    seen: set[int] = set()
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        if own:
            seen.update(map(id, own))
            yield module


def cut(modules: Iterable[nn.Module], n: int) -> list[list[nn.Module]]:
    """`modules` in their order, in n parts of about as many parameters."""
    modules = list(modules)
    total = sum(p.numel() for m in modules for p in m.parameters(recurse=False))
    parts: list[list[nn.Module]] = [[] for _ in range(n)]
    before = 0
    for module in modules:
        parts[min(n - 1, n * before // total)].append(module)
        before += sum(p.numel() for p in module.parameters(recurse=False))
    return parts


LIGHTNING = {"lightning_ddp": DDPStrategy, "lightning_ddp_bf16": DDPWithHook}
LOOPS: dict[str, type[Loop]] = {
    "periodic_averager": PeriodicAverager,
    "accelerate_local_sgd": AccelerateLocalSGD,
    "torchft_local_sgd": TorchftLocalSGD,
    "torchft_diloco": TorchftDiLoCo,
    "torchft_streaming": TorchftStreaming,
}


def run(job: Job, config: DictConfig, report: Report) -> None:
    """Train by the method that the job names; the meter ends it."""
    if job.method in LIGHTNING:
        fit(config, LIGHTNING[job.method](timeout=TIMEOUT), [Steps(job, report)])
        return
    loop = LOOPS[job.method]
    if loop.needs and importlib.util.find_spec(loop.needs) is None:
        raise ModuleNotFoundError(f"{loop.needs} is not installed: pip install -c constraints.txt -e .[bench]")
    loop(job, config).run(Meter(job, report))
