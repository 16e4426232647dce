"""Who started this process, and which worker it is: decided here, from the environment, and nowhere else.

Variables outlive what set them: a shell inside a SLURM job, a notebook server that torchrun started, an export in a
profile. So a launcher is believed only if everything is there that it sets, in this order:

worker     we started it: TICKS_WORKER names this process's parent (worker 0's of a machine: this process itself). It is
           what that says, whatever else is set.
torchrun   TORCHELASTIC_RUN_ID, RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
srun       SLURM_STEP_ID, SLURM_PROCID, SLURM_LOCALID, SLURM_NODEID and SLURM_NTASKS above 1, in no interactive shell
           (SLURM_JOB_NAME bash, sh, zsh, fish or interactive; SLURM_PTY_PORT, which `srun --pty` sets) unless
           SLURM_TASK_PID is this very process.
jsrun      LSB_JOBID, LSB_DJOB_RANKFILE, JSM_NAMESPACE_RANK, JSM_NAMESPACE_LOCAL_RANK and JSM_NAMESPACE_SIZE.
mpirun     OMPI_COMM_WORLD_SIZE or PMI_SIZE above 1, and its RANK. It needs mpi4py.
hand       LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, and RANK or NODE_RANK: somebody starts every worker.
own        otherwise: this process starts the others. NODE_RANK, MASTER_ADDR and MASTER_PORT count on several nodes.

This module imports nothing but the standard library.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Literal

from ticks.arguments import ArgumentError

WORKER = "TICKS_WORKER"
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
PLACE = ("MASTER_ADDR", "MASTER_PORT")
TORCHRUN = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", *PLACE)
SRUN = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS")
JSRUN = (
    "LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE",
)  # fmt: skip
HAND = ("LOCAL_RANK", "WORLD_SIZE", *PLACE)
MPI = ("OMPI_COMM_WORLD", "PMI")
READ_BY_LIGHTNING = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # when it is imported, believed or not
INTERACTIVE = ("bash", "sh", "zsh", "fish", "interactive")  # names that SLURM gives, or people give, to a shell's job


class WrongLauncher(ValueError):
    """The environment speaks of workers in a way that cannot be meant. Its text is the whole message."""


class WrongNodes(ArgumentError, WrongLauncher):
    """What the environment lacks for so many nodes."""


@dataclass(frozen=True)
class Identity:
    """Which worker this process is, and where worker 0 is to be met. `world_size` is None where the launcher is `own`:
    then the Trainer says it."""

    launcher: Literal["own", "worker", "torchrun", "srun", "jsrun", "mpirun", "hand"]
    rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    world_size: int | None = None
    address: str = "127.0.0.1"
    port: int = 0  # 0: worker 0 takes a free one
    process: int = 0  # of `worker`: the process that started it
    by_main_thread: bool = True  # of it

    @property
    def started_by_others(self) -> bool:
        """Whether every worker decides for itself what to do, from the same command line."""
        return self.launcher not in ("own", "worker")

    def to_environment(self) -> dict[str, str]:
        """What a worker that we start finds in its environment; the usual names are for the code of others."""
        return {
            WORKER: json.dumps(asdict(self)),
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "NODE_RANK": str(self.node_rank),
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def check_numbers(environ: Mapping[str, str] | None = None) -> None:
    """WrongLauncher if Lightning could not even be imported."""
    for name in READ_BY_LIGHTNING:
        _number(os.environ if environ is None else environ, name, 0)


def who_am_i(environ: Mapping[str, str] | None = None, *, num_nodes: int = 1) -> Identity:
    """This process as the table above says. WrongLauncher if a launcher is there but says what cannot be."""
    check_numbers(environ)
    by_hand: Mapping[str, str]
    environ = by_hand = os.environ if environ is None else environ
    if (told := as_told(environ)) is not None:
        if _is_me(told):
            return told
        inherited = told.to_environment().items() & environ.items()
        by_hand = {name: value for name, value in environ.items() if (name, value) not in inherited}
        if len(inherited) == len(told.to_environment()):  # else torchrun may have set some anew to what they were
            environ = by_hand
    for of in (_torchrun, _srun, _jsrun, _mpirun):
        if (identity := of(environ)) is not None:
            return identity
    return _by_hand(by_hand, num_nodes) or _own(by_hand, num_nodes)


def unbelieved(environ: Mapping[str, str], num_nodes: int = 1) -> list[str]:
    """Variables that launchers set and that mean nothing here, since what set them is not there any more."""
    if who_am_i(environ, num_nodes=num_nodes).launcher != "own":
        return []
    meant = ("NODE_RANK", *PLACE) if num_nodes > 1 else ()
    return [name for name in (*RANKS, *SIZES, *PLACE) if name in environ and name not in meant]


def as_told(environ: Mapping[str, str]) -> Identity | None:
    """What TICKS_WORKER says, whichever process it is meant for."""
    return Identity(**json.loads(environ[WORKER])) if environ.get(WORKER) else None


def _is_me(told: Identity) -> bool:
    """Worker 0 of a machine tells itself as well, for a script's second Trainer; what a worker starts inherits it."""
    return told.process == (os.getpid() if told.local_rank == 0 else os.getppid())


def _torchrun(environ: Mapping[str, str]) -> Identity | None:
    if not _all_set(environ, TORCHRUN):
        return None
    return _ranked("torchrun", environ, "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE")


def tasks_of_a_shell(environ: Mapping[str, str]) -> int:
    """How many tasks SLURM speaks of in what looks like an interactive shell; 0 where there is no doubt."""
    if not _all_set(environ, SRUN) or not _in_a_shell(environ) or (tasks := _number(environ, "SLURM_NTASKS")) < 2:
        return 0
    return tasks


def _in_a_shell(environ: Mapping[str, str]) -> bool:
    shell = "SLURM_PTY_PORT" in environ or environ.get("SLURM_JOB_NAME") in INTERACTIVE
    return shell and environ.get("SLURM_TASK_PID") != str(os.getpid())  # srun has started this very process


def _srun(environ: Mapping[str, str]) -> Identity | None:
    if not _all_set(environ, SRUN) or _in_a_shell(environ) or _number(environ, "SLURM_NTASKS") < 2:
        return None
    return _ranked("srun", environ, "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS")


def _jsrun(environ: Mapping[str, str]) -> Identity | None:
    if not _all_set(environ, JSRUN):
        return None
    return _ranked("jsrun", environ, "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "NODE_RANK", JSRUN[-1])


def _mpirun(environ: Mapping[str, str]) -> Identity | None:
    for prefix in MPI:
        rank, size = f"{prefix}_RANK", f"{prefix}_SIZE"
        if not _all_set(environ, (rank, size)) or _number(environ, size) < 2:
            continue
        if find_spec("mpi4py") is None:
            raise WrongLauncher(
                f"{size}={environ[size]}: mpirun's workers find each other through mpi4py, which is not installed:"
                " pip install mpi4py, or start with torchrun"
            )
        return _ranked("mpirun", environ, rank, f"{prefix}_LOCAL_RANK", "NODE_RANK", size)
    return None


def _by_hand(environ: Mapping[str, str], num_nodes: int) -> Identity | None:
    if not _all_set(environ, HAND) or not ("RANK" in environ or "NODE_RANK" in environ):
        return None
    size, local, node = (_number(environ, name, 0) for name in ("WORLD_SIZE", "LOCAL_RANK", "NODE_RANK"))
    rank = _number(environ, "RANK", node * max(1, size // max(1, num_nodes)) + local)
    if not 0 <= rank < size and ("RANK" in environ or num_nodes > 1):  # else the Trainer has not said how many nodes
        raise WrongLauncher(f"WORLD_SIZE={size}, but this is worker {rank}: ranks are 0 to WORLD_SIZE - 1")
    return Identity("hand", rank, local, node, size, environ["MASTER_ADDR"], _number(environ, "MASTER_PORT"))


def _own(environ: Mapping[str, str], num_nodes: int) -> Identity:
    if num_nodes <= 1:
        return Identity("own")
    if missing := [name for name in ("NODE_RANK", *PLACE) if not environ.get(name)]:
        raise WrongNodes(
            "num_nodes",
            num_nodes,
            f"but {', '.join(missing)} not set: start one process on each node with NODE_RANK, MASTER_ADDR and"
            " MASTER_PORT, or use torchrun or srun",
        )
    node = _number(environ, "NODE_RANK")
    if not 0 <= node < num_nodes:
        raise WrongLauncher(f"NODE_RANK={node} must be from 0 to {num_nodes - 1}: there are num_nodes={num_nodes}")
    # of all that run on a node the first; how many there are the Trainer knows: any number but 0 says "not worker 0"
    return Identity("own", node, 0, node, None, environ["MASTER_ADDR"], _number(environ, "MASTER_PORT"))


def _ranked(launcher: Literal["torchrun", "srun", "jsrun", "mpirun"], environ: Mapping[str, str], rank: str,
            local: str, node: str, size: str) -> Identity:  # fmt: skip
    return Identity(
        launcher,
        rank=_number(environ, rank),
        local_rank=_number(environ, local, 0),
        node_rank=_number(environ, node, 0),
        world_size=_number(environ, size),
        address=environ.get("MASTER_ADDR", ""),
        port=_number(environ, "MASTER_PORT", 0),
    )


def _all_set(environ: Mapping[str, str], names: tuple[str, ...]) -> bool:
    return all(environ.get(name) for name in names)


def _number(environ: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = environ.get(name, "" if otherwise is None else str(otherwise))
    try:
        return int(text)
    except ValueError:
        raise WrongLauncher(f"{name}={text} in the environment must be a whole number") from None
