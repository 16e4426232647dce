"""What Lightning calls a cluster environment, made of this process's `Identity`."""

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from ticks.strategy.identity import Identity, WrongLauncher, who_am_i

LIGHTNINGS = {
    "torchrun": TorchElasticEnvironment,
    "srun": SLURMEnvironment,
    "jsrun": LSFEnvironment,
    "mpirun": MPIEnvironment,
}


def cluster_environment() -> ClusterEnvironment:
    """Lightning's own for launchers that it knows, if one of them started this process; else a WorkerEnvironment."""
    launcher = who_am_i().launcher  # it does not depend on the number of nodes, which the Trainer has not said yet
    return LIGHTNINGS[launcher]() if launcher in LIGHTNINGS else WorkerEnvironment()


class WorkerEnvironment(ClusterEnvironment):
    """Workers that we start, or that somebody starts by hand. Nothing is asked of variables that nobody means."""

    def __init__(self) -> None:
        super().__init__()
        self._identity: Identity | None = None
        self._num_nodes = 1
        self._rank, self._world_size = 0, 1

    @property
    def identity(self) -> Identity:
        if self._identity is None:
            self._identity = who_am_i(num_nodes=self._num_nodes)
        return self._identity

    def become(self, identity: Identity) -> None:
        """The workers are started, and this is what worker 0 of this machine is from now on."""
        self._identity = identity

    def set_num_nodes(self, num_nodes: int) -> None:
        if num_nodes != self._num_nodes:
            self._num_nodes, self._identity = num_nodes, None

    @property
    def creates_processes_externally(self) -> bool:
        return self.identity.launcher != "own"

    @property
    def main_address(self) -> str:
        return self.identity.address

    @property
    def main_port(self) -> int:
        return self.identity.port

    @staticmethod
    def detect() -> bool:
        return True

    def world_size(self) -> int:
        return self._world_size

    def set_world_size(self, size: int) -> None:
        """WrongLauncher unless there are as many workers as the Trainer wants, and this is one of them."""
        there = self.identity.world_size
        if there is not None and there != size:
            raise WrongLauncher(
                f"the Trainer wants {size} workers (devices x num_nodes), but there are {there}"
                + (f": WORLD_SIZE={there} in the environment" if self.identity.launcher == "hand" else "")
            )
        if self.identity.launcher == "hand" and not 0 <= self._rank < size:
            raise WrongLauncher(f"WORLD_SIZE={size}, but this is worker {self._rank}: ranks are 0 to WORLD_SIZE - 1")
        self._world_size = size

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """Workers started by hand are who they were told to be; Lightning counts node by node."""
        self._rank = self.identity.rank if self.identity.launcher == "hand" else rank

    def local_rank(self) -> int:
        return self.identity.local_rank

    def node_rank(self) -> int:
        return self.identity.node_rank

    def teardown(self) -> None:
        """Nothing was set."""
