"""Which launcher is believed when: the table of docs/launchers.md, a test per row, its variables faked."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from ticks.strategy import identity
from ticks.strategy.environment import WorkerEnvironment, cluster_environment
from ticks.strategy.identity import Identity, WrongLauncher, tasks_of_a_shell, unbelieved, who_am_i

PLACE = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "2", "WORLD_SIZE": "6"} | PLACE
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "4",
        "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train"}  # fmt: skip
JSRUN = {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "hosts", "JSM_NAMESPACE_RANK": "2", "JSM_NAMESPACE_LOCAL_RANK": "0",
         "JSM_NAMESPACE_SIZE": "4"}  # fmt: skip
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
HAND = {"LOCAL_RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "4"} | PLACE
SALLOC = {"SLURM_JOB_NAME": "bash", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_PROCID": "0",
          "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}  # fmt: skip


@pytest.fixture(autouse=True)
def _mpi4py_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    ("environ", "launcher", "rank", "local_rank", "world_size"),
    [
        (TORCHRUN, "torchrun", 5, 1, 6),
        (TORCHRUN | SRUN, "torchrun", 5, 1, 6),  # torchrun runs inside SLURM as well
        (SRUN, "srun", 3, 1, 4),
        (JSRUN, "jsrun", 2, 0, 4),
        (MPIRUN, "mpirun", 1, 1, 4),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "mpirun", 1, 0, 2),
        (HAND, "hand", 3, 1, 4),
        (HAND | {"RANK": "2"}, "hand", 2, 1, 4),
    ],
)
def test_a_launcher_that_has_set_all_it_sets_is_believed(
    environ: dict[str, str], launcher: str, rank: int, local_rank: int, world_size: int
) -> None:
    me = who_am_i(environ, num_nodes=2)
    assert (me.launcher, me.rank, me.local_rank, me.world_size) == (launcher, rank, local_rank, world_size)
    assert me.started_by_others
    assert not unbelieved(environ, 2)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        SALLOC,  # an interactive session: its shell's variables
        SRUN | {"SLURM_JOB_NAME": "interactive"},
        SRUN | {"SLURM_PTY_PORT": "4711"},  # srun --pty
        SRUN | {"SLURM_NTASKS": "1"},
        {k: v for k, v in SRUN.items() if k != "SLURM_STEP_ID"},  # a batch script that does not use srun
        {"RANK": "0"},
        {"RANK": "3", "WORLD_SIZE": "4"},
        {"LOCAL_RANK": "0", "WORLD_SIZE": "1"},
        {"NODE_RANK": "1"},
        PLACE,
        {k: v for k, v in TORCHRUN.items() if k != "TORCHELASTIC_RUN_ID"} | {"MASTER_ADDR": ""},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
    ids=lambda environ: " ".join(environ)[:60] or "nothing",
)
def test_what_a_launcher_left_behind_is_not_believed(environ: dict[str, str]) -> None:
    me = who_am_i(environ)
    assert me == Identity("own")  # and so worker 0, which meets the others on this machine
    assert set(unbelieved(environ)) == environ.keys() & {"RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE",
                                                          "MASTER_ADDR", "MASTER_PORT"}  # fmt: skip


def test_a_worker_is_what_it_was_told_whatever_the_shell_said() -> None:
    told = Identity("worker", 2, 2, 0, 3, "127.0.0.1", 1234, os.getppid())
    assert who_am_i(TORCHRUN | SRUN | HAND | told.to_environment()) == told
    assert not told.started_by_others


@pytest.mark.parametrize(
    "told",
    [
        Identity("worker", 2, 2, 0, 3, "127.0.0.1", 1234, process=1),  # started by worker 2
        Identity("worker", 0, 0, 0, 3, "127.0.0.1", 1234, process=os.getppid()),  # by worker 0
    ],
)
def test_what_a_worker_starts_is_no_worker_and_inherits_nothing(told: Identity) -> None:
    assert who_am_i({identity.WORKER: json.dumps(asdict(told))}) == Identity("own")
    assert who_am_i({"TORCHELASTIC_RUN_ID": "none"} | told.to_environment()) == Identity("own")
    assert who_am_i(told.to_environment() | TORCHRUN).launcher == "torchrun"  # which a worker has started
    assert who_am_i(told.to_environment() | {"MASTER_PORT": "1"}) == Identity("own")  # the rest was said to another
    left = unbelieved(told.to_environment())
    assert left == ["RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]


def test_worker_0_tells_itself() -> None:
    told = Identity("worker", 0, 0, 0, 3, "127.0.0.1", 1234, os.getpid())
    assert who_am_i(told.to_environment()) == told


def test_a_node_rank_alone_is_checked_where_the_number_of_nodes_is_known() -> None:
    """Before the Trainer has said that there are two nodes, worker 2 would be worker 4 of 4."""
    environment = HAND | {"LOCAL_RANK": "0"}
    assert who_am_i(environment).launcher == "hand"
    assert who_am_i(environment, num_nodes=2).rank == 2
    with pytest.raises(WrongLauncher, match="but this is worker 4"):
        who_am_i(environment | {"NODE_RANK": "2"}, num_nodes=2)


@pytest.mark.parametrize(
    ("environ", "num_nodes", "processes", "rank"),
    [
        (HAND | {"LOCAL_RANK": "0"}, 2, 2, 2),
        ({k: v for k, v in HAND.items() if k != "NODE_RANK"} | {"RANK": "3"}, 1, 4, 3),  # nobody counts node by node
    ],
)
def test_a_worker_started_by_hand_is_who_it_was_told_to_be(
    environ: dict[str, str], num_nodes: int, processes: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    ours = cluster_environment()
    assert isinstance(ours, WorkerEnvironment)
    ours.set_num_nodes(num_nodes)
    ours.set_global_rank(ours.node_rank() * processes + ours.local_rank())
    ours.set_world_size(4)
    assert ours.global_rank() == rank


def test_what_srun_itself_has_started_is_believed_even_in_an_interactive_session() -> None:
    in_a_shell = SRUN | {"SLURM_JOB_NAME": "bash"}
    assert who_am_i(in_a_shell | {"SLURM_TASK_PID": str(os.getpid())}).launcher == "srun"
    assert not tasks_of_a_shell(in_a_shell | {"SLURM_TASK_PID": str(os.getpid())})
    assert who_am_i(in_a_shell | {"SLURM_TASK_PID": "1"}) == Identity("own")
    assert tasks_of_a_shell(in_a_shell | {"SLURM_TASK_PID": "1"}) == 4  # and a line says so
    assert not tasks_of_a_shell(SALLOC)
    assert not tasks_of_a_shell(SRUN)


def test_on_several_nodes_the_first_process_of_each_is_told_its_node() -> None:
    me = who_am_i({"NODE_RANK": "1"} | PLACE, num_nodes=2)
    assert (me.launcher, me.rank, me.node_rank, me.address, me.port) == ("own", 1, 1, "10.0.0.1", 29500)


@pytest.mark.parametrize(
    ("environ", "num_nodes", "words"),
    [
        (PLACE, 2, "NODE_RANK not set"),
        ({"NODE_RANK": "0"}, 2, "MASTER_ADDR, MASTER_PORT not set"),
        ({"NODE_RANK": "2"} | PLACE, 2, "NODE_RANK=2 must be from 0 to 1"),
        (TORCHRUN | {"RANK": "x"}, 1, "RANK=x in the environment must be a whole number"),
        (HAND | {"RANK": "4"}, 1, "WORLD_SIZE=4, but this is worker 4"),
    ],
)
def test_what_cannot_be_meant_is_named_and_refused(environ: dict[str, str], num_nodes: int, words: str) -> None:
    with pytest.raises(WrongLauncher, match=words):
        who_am_i(environ, num_nodes=num_nodes)


def test_mpirun_without_mpi4py_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "find_spec", lambda name: None)
    with pytest.raises(WrongLauncher, match=r"OMPI_COMM_WORLD_SIZE=4.*pip install mpi4py"):
        who_am_i(MPIRUN)


def test_the_docs_have_a_row_for_every_launcher() -> None:
    page = (REPOSITORY / "docs" / "launchers.md").read_text()
    for name in Identity.__annotations__["launcher"].__args__:
        assert f"\n| {name} |" in page
    for name in (*identity.TORCHRUN, *identity.SRUN, *identity.JSRUN, *identity.HAND):
        assert f"`{name}`" in page, name


@pytest.mark.parametrize("module", ["identity", "parent", "exits"])
def test_it_needs_the_standard_library_alone(module: str, tmp_path: Path) -> None:
    script = f"import sys, ticks.strategy.{module}; print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["False", "False"]
