"""The process group of a strategy: its workers are started, find each other, say the same, and are missed."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn
from uuid import uuid4

import torch.distributed as dist

from ticks.arguments import above
from ticks.strategy import meeting
from ticks.strategy.environment import WorkerEnvironment, cluster_environment
from ticks.strategy.launch import WorkerLauncher
from ticks.strategy.lightning import OpenDDPStrategy
from ticks.strategy.parent import end_with_parent
from ticks.strategy.refusals import Refused
from ticks.strategy.shutdown import Presence, leave

A_YEAR = 31_536_000  # seconds
START_UP = timedelta(seconds=50)  # what workers that we start may take at least to get here: they import torch
HOSTED = timedelta(seconds=10)  # what a store may take to answer at least that worker 0 hosted before it started us


class LaunchedStrategy(OpenDDPStrategy):
    """DDPStrategy with a launcher that leaves nothing behind, and workers that look whether the others are there.

    `worker_command` starts workers 1 .. n - 1 (default: this script again). `fingerprint` is compared over the workers
    at the start: give a digest of the configuration. `heartbeat_seconds` is how often workers look for a stop request,
    `hang_seconds` how long one may be silent, or be in one step while others wait for it in a tick, before everything
    is stopped.
    """

    def __init__(
        self,
        *,
        heartbeat_seconds: float = 1.0,
        hang_seconds: float = 300.0,
        fingerprint: str = "",
        worker_command: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        above(0, most=A_YEAR, of=" seconds", heartbeat_seconds=heartbeat_seconds, hang_seconds=hang_seconds)
        end_with_parent()
        super().__init__(cluster_environment=kwargs.pop("cluster_environment", None) or cluster_environment(), **kwargs)
        self.heartbeat_seconds = heartbeat_seconds
        self.hang_seconds = hang_seconds
        self.fingerprint = fingerprint
        self.worker_command = worker_command
        self._presence: Presence | None = None
        self._fit_name = ""  # of this fit, validate or test: the same on all workers

    def make_launcher(self) -> WorkerLauncher:
        assert self.cluster_environment is not None
        return WorkerLauncher(
            self.cluster_environment,
            self.num_processes,
            self.num_nodes,
            command=self.worker_command,
            patience=self.timeout,
        )

    def set_world_ranks(self) -> None:
        if isinstance(self.cluster_environment, WorkerEnvironment):
            self.cluster_environment.set_num_nodes(self.num_nodes)
        super().set_world_ranks()

    def setup_distributed(self) -> None:
        """The process group, where nobody waits inside C++ for somebody who does not come."""
        self.set_world_ranks()
        if dist.is_initialized() and dist.get_world_size() == 1 != self.world_size:  # of an earlier Trainer
            dist.destroy_process_group()
        if not dist.is_initialized() and isinstance(self.cluster_environment, WorkerEnvironment):
            self._find_each_other(self.cluster_environment)
        super().setup_distributed()

    def _find_each_other(self, environment: WorkerEnvironment) -> None:
        launcher, rank, timeout = self.launcher, self.global_rank, self.timeout
        assert isinstance(launcher, WorkerLauncher)
        if self.world_size == 1:
            self._make_process_group(dist.HashStore(), timeout)
            return
        on_one_machine = environment.identity.launcher == "worker" and self.num_nodes == 1
        patience = max(START_UP, timedelta(seconds=self.hang_seconds)) if on_one_machine else timeout
        address, port = environment.main_address, environment.main_port
        if rank == 0:
            store = launcher.store or meeting.host(port, timeout)
        else:
            there_already = max(HOSTED, timedelta(seconds=self.hang_seconds)) if on_one_machine else timeout
            store = meeting.join(address, port, there_already, who=f"worker {rank}")
        store.set_timeout(timeout)
        if rank != 0:
            self._be_present("start", store)
        by_hand = ", as LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, RANK or NODE_RANK in the environment say"
        how = f"at {address}:{port}{by_hand if environment.identity.launcher == 'hand' else ''}"
        meeting.gather(store, rank, self.world_size, patience, how=how, check=launcher.check)
        if rank == 0:  # they are here, and have said so
            self._be_present("start", store)
        self._make_process_group(store, timeout)

    def _make_process_group(self, store: dist.Store, timeout: timedelta) -> None:
        dist.init_process_group(
            self.backend,
            store=dist.PrefixStore("default_pg", store),
            rank=self.global_rank,
            world_size=self.world_size,
            timeout=timeout,
            device_id=self.root_device if self.root_device.type != "cpu" else None,
        )

    def _roll_call(self) -> None:
        """All workers are here for the same; from now on one that hangs is missed. `Refused` if they were started with
        different configurations."""
        self._compare_fingerprints()
        self._be_present(self._fit_name)

    def _be_present(self, name: str, store: Any = None) -> None:
        if self.world_size == 1:
            return
        earlier = self._presence  # it misses a worker 0 that goes while torch connects to it again, and tries for long
        self._presence = Presence(
            self.global_rank,
            self.world_size,
            name=name,
            seconds=self.heartbeat_seconds,
            hang_seconds=self.hang_seconds,
            abort=self._abort,
            store=store.clone() if hasattr(store, "clone") else store,
        )
        if earlier is not None:
            earlier.close()

    def teardown(self) -> None:
        if self._presence is not None:
            self._presence.close()
            self._presence = None
        super().teardown()

    def describe(self) -> str:
        """What must be equal on all workers, in a few words."""
        return type(self).__name__

    def _compare_fingerprints(self) -> None:
        mine = f"{self.fingerprint} {self.describe()}"
        gathered = self._gather((mine, uuid4().hex))
        everyones, self._fit_name = [theirs for theirs, _ in gathered], gathered[0][1]
        different = [rank for rank, theirs in enumerate(everyones) if theirs != everyones[0]]
        if different:
            raise Refused(
                f"workers {different} were started with another configuration than worker 0"
                f" ({everyones[different[0]]!r} instead of {everyones[0]!r})"
            )

    def _gather(self, thing: Any) -> list[Any]:
        """Every worker's `thing`, by rank."""
        things: list[Any] = [None] * self.world_size
        dist.all_gather_object(things, thing)
        return things

    def _abort(self, message: str) -> NoReturn:
        if isinstance(self.launcher, WorkerLauncher):
            self.launcher.kill_all()
        leave(message)
        raise AssertionError("unreachable")
