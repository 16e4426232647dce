"""The marker `workers`, and what is forked in place of an interpreter."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests import conftest
from tests.conftest import Command, run_command, run_workers
from tests.marks import starts
from tests.strategy.cases import Cases

TRAINED = {2: Cases(2, {})}


def helper() -> None:
    run_workers(1, int)


class Helper:
    def run(self) -> Command:
        return next(Command(Path(), argument) for argument in "a")


def uses_a_helper() -> None:
    helper()


def uses_a_class() -> None:
    Helper().run()


def uses_what_was_made_before() -> None:
    assert TRAINED[2]["case"]


def uses_it_within() -> None:
    def inner() -> None:
        helper()

    inner()


def test_what_comes_to_a_starter_is_found() -> None:
    for function in (uses_a_helper, uses_a_class, uses_what_was_made_before, uses_it_within, partial(helper)):
        assert starts(function), function
    for function in (test_an_unmarked_test_cannot_start_workers, print, None):
        assert not starts(function), function


def test_a_test_that_comes_to_one_has_the_marker(request: pytest.FixtureRequest) -> None:
    """By what it says below, though it never gets there."""
    assert request.node.get_closest_marker("workers")
    if not request:
        helper()


def test_an_unmarked_test_cannot_start_workers(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    assert not request.node.get_closest_marker("workers")
    for start in (partial(conftest.run_workers, 1, int), partial(conftest.Command, tmp_path)):
        with pytest.raises(pytest.fail.Exception, match=r"needs @pytest\.mark\.workers"):
            start()


def test_processes_of_an_unmarked_test_find_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "imports torch needs @pytest.mark.workers" in done.stderr


# ---- spares ----------------------------------------------------------------------------------------------------------

PARENT = """
import os, sys
from ticks.jobs import run_job
for deaf in (True, False):
    outcome = run_job([sys.executable, "child.py", "a", "b"], [], env={"OURS": "1"}, directory="below", deaf=deaf)
    print(outcome.code, flush=True)
"""
CHILD = """
import beside, os, signal, sys
blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
print(__name__, sys.argv, os.path.basename(os.getcwd()), os.environ["OURS"], [int(signum) for signum in blocked])
print(os.getsid(0) == os.getpid(), os.getppid() == int(os.environ["TICKS_JOB_OF"]), sys.stdin is None, flush=True)
open("imported", "w").write(str("hydra" in sys.modules))
sys.exit(7)
"""


def test_what_is_forked_starts_as_an_interpreter_does(tmp_path: Path) -> None:
    outputs = []
    for fresh in (True, False):
        below = tmp_path / str(fresh) / "below"
        below.mkdir(parents=True)
        (below / "child.py").write_text(CHILD)
        (below / "beside.py").write_text("")
        code, output = run_command(below.parent, PARENT, "trainer.devices=3", program="-c", fresh=fresh)
        assert code == 0, output
        assert (below / "imported").read_text() == str(not fresh)
        outputs.append(output.splitlines())
    assert outputs[0] == outputs[1]
    told = "__main__ ['child.py', 'a', 'b'] below 1"
    assert outputs[0][:3] == [f"{told} [1, 2, 15]", "True True False", "7"]
    assert outputs[0][3] == f"{told} []"


def test_spares_that_were_not_needed_go_with_the_command(tmp_path: Path) -> None:
    command = Command(tmp_path, "print('here', flush=True); import time; time.sleep(60)", program="-c")
    command.wait_for("here")
    assert len(command.group()) == 2
    command.process.kill()
    assert command.end(10) == -9
    deadline = time.monotonic() + 10
    while command.group() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not command.group()
