"""The network benchmark where it cannot run: one message, no traceback, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks.network.measure import Job, measure
from tests.benchmarks.network.plan import Planned
from tests.benchmarks.network.report import Results, draw_losses, draw_speeds, speed_table
from tests.conftest import REPOSITORY, run_command, run_workers

OTHERS = ("periodic_averager", "accelerate_local_sgd", "torchft_local_sgd", "torchft_diloco", "torchft_streaming")


def of_another(method: str) -> list[str]:
    told: list[dict[str, float]] = []

    class Reported(Exception):
        pass

    def report(outcome: dict[str, float]) -> None:
        told.append(outcome)
        raise Reported

    os.environ["RANK"] = os.environ["LOCAL_RANK"]
    n = 8 if method == "torchft_streaming" else 2  # two steps for each of four fragments
    job = Job(method, "default", 100.0, n, steps=n, warmup=n, lead=0)
    with pytest.raises(Reported):
        measure(job, report)
    return sorted(told[0])


@pytest.mark.parametrize("method", OTHERS)
def test_what_others_offer_trains_too(method: str) -> None:
    pytest.importorskip(method.partition("_")[0].replace("periodic", "torch"))
    assert run_workers(2, of_another, method) == [["booked", "own", "seconds", "sent"]] * 2


# namespaces are files in a folder of its own, and the third that is asked for is refused
FAKE_IP = """#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> calls
case "$1 $2" in
"netns add")
    if [ "$(grep -c '^netns add' calls)" -ge 3 ]; then echo "RTNETLINK answers: Operation not permitted" >&2; exit 2; fi
    touch "namespaces/$3" ;;
"netns delete") rm "namespaces/$3" ;;
esac
"""

START = """
import os, sys, runpy, pathlib, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from tests.benchmarks.network import link
os.geteuid = lambda: {user}
link.NAMESPACES = pathlib.Path({namespaces!r})
sys.argv = ["network", "--rates", "100"]
runpy.run_module("tests.benchmarks.network", run_name="__main__")
"""


def start(folder: Path, *, user: int, stop: signal.Signals | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m tests.benchmarks.network`, for the user id `user`, with the commands that lie in `folder`; `stop` is
    sent when the network stands."""
    script = START.format(user=user, namespaces=str(folder / "namespaces"))
    env = os.environ | {"PATH": f"{folder}:/usr/bin:/bin"}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=-1, stderr=-1, text=True) as process:
        if stop is not None:
            deadline = time.monotonic() + 30
            while len(list((folder / "namespaces").iterdir())) < 5 and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(stop)
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def fake_commands(folder: Path, *, refused: int = 3) -> Path:
    (folder / "namespaces").mkdir()
    for name in ("ip", "tc"):
        (folder / name).write_text(FAKE_IP.replace("-ge 3", f"-ge {refused}"))
        (folder / name).chmod(0o755)
    return folder


def test_without_root_it_says_so_and_touches_nothing(tmp_path: Path) -> None:
    ran = start(fake_commands(tmp_path), user=1000)
    assert ran.returncode == 1, ran.stderr
    assert "needs root" in ran.stdout
    assert "Traceback" not in ran.stderr + ran.stdout
    assert not (tmp_path / "calls").exists()


def test_a_network_that_cannot_be_built_is_taken_down_again(tmp_path: Path) -> None:
    ran = start(fake_commands(tmp_path), user=0)
    assert ran.returncode == 1, ran.stderr
    assert "Operation not permitted" in ran.stdout
    assert "Traceback" not in ran.stderr + ran.stdout
    calls = (tmp_path / "calls").read_text().splitlines()
    made = [call.split()[2] for call in calls if call.startswith("netns add")][:-1]
    assert len(made) == 2, "it got as far as the third"
    assert list((tmp_path / "namespaces").iterdir()) == []


@pytest.mark.workers  # it may come to import torch before it is stopped
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_network_is_taken_down_when_a_run_is_stopped(tmp_path: Path, stop: signal.Signals, code: int) -> None:
    ran = start(fake_commands(tmp_path, refused=6), user=0, stop=stop)
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr + ran.stdout
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum(call.startswith("netns add") for call in calls) == 5, "one for each worker and the bridge"
    assert list((tmp_path / "namespaces").iterdir()) == []


def test_a_run_that_was_killed_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
    folder = fake_commands(tmp_path)
    for name in (f"ticks-bench-{dead}-0", f"ticks-bench-{dead}-bridge", "somebody-elses"):
        (folder / "namespaces" / name).touch()
    start(folder, user=0)
    assert [path.name for path in (folder / "namespaces").iterdir()] == ["somebody-elses"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--tick --rates 100,1000", 0, "1000 Mbit/s: 20 pairs"),
        ("--seconds 0", 2, "argument --seconds: 0 s: give more than 0 seconds"),
        ("--presets nosuch", 2, "--presets: unknown: nosuch; valid: ddp, accumulate"),
        ("--time-to-loss diloco --loss-steps 650", 2, "650 steps do not end with an evaluation: give multiples of 40"),
    ],
)
def test_it_says_what_it_would_measure_or_what_is_wrong(
    tmp_path: Path, arguments: str, code: int, message: str
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    options = ["--dry-run", "--json", str(results / "none.json"), "--rates", "100", *arguments.split()]
    ended_with, output = run_command(tmp_path, "tests.benchmarks.network", *options, program="-m")
    assert ended_with == code, output
    assert message in output
    assert "Traceback" not in output
    assert not list(results.iterdir())


def test_figures_of_bandwidths_come_in_their_order_however_they_were_measured(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    for rate, seconds in ((1000.0, 1.0), (10.0, 100.0), (100.0, 10.0)):
        results.add_ceiling("large", 8, [{"seconds": 1.0}])
        for method, faster in (("ddp", 1.0), ("local_sgd", rate / 100)):
            item = Planned(Job(method, "large", rate, 1, steps=8), seconds=1.0)
            counts = {"seconds": seconds / faster, "sent": 1e6, "own": 0.0, "booked": 1e6}
            results.add_speed(item, [counts] * 4, since=0.0)
    table = speed_table(results.rows(), "large")
    ddp, ours = zip(*(list(column.cells) for column in table.columns), strict=True)
    assert ddp[2:5] == ("0.08 (0.01)", "0.80 (0.10)", "8.00 (1.00)")
    assert ours[5] == "0.1 / 1.0 / 10.0"


def test_speeds_are_shares_of_the_ceilings_beside_them_with_what_repeats_make_of_them(tmp_path: Path) -> None:
    """The machine gets slower and slower: speeds do, shares do not."""
    results = Results(tmp_path / "results.json")
    results.save = lambda: None  # type: ignore[method-assign]
    for slower in (1.0, 2.0, 4.0):
        for method, share in (("ddp", 0.2), ("local_sgd", 0.9), ("torchft_streaming", 0.8)):
            interval = 1 if method == "ddp" else 32
            for rate in (10.0, 100.0):
                results.add_ceiling("large", 8, [{"seconds": slower}])
                counts = {"seconds": slower / share, "sent": 1e6, "own": 0.0, "booked": 1e6 * (share != 0.8)}
                item = Planned(Job(method, "large", rate, interval, steps=8), seconds=1.0)
                results.add_speed(item, [counts] * 4, since=0.0)
                results.add_ceiling("large", 8, [{"seconds": slower}])
    rows = {(row.method, row.rate): row for row in results.rows()}
    assert rows["ddp", 10.0].shares == pytest.approx([0.2] * 3)
    assert rows["local_sgd", 100.0].share == pytest.approx(0.9)
    file = draw_speeds(results.rows(), tmp_path / "speeds.svg")
    for label in ("ddp", "local_sgd", "torchft_streaming (others)", "share of the speed without talking", "Mbit/s"):
        assert f">{label}<" in file.read_text()


def test_curves_of_a_slow_network_have_every_label(tmp_path: Path) -> None:
    losses = [
        {"method": method, "model": "default", "steps": steps, "rate": 100.0,
         "curve": [[step, step * faster, step * faster, 3.0 - step / 400] for step in range(40, steps + 1, 40)]}
        for method, steps, faster in (("ddp", 640, 1.0), ("powersgd", 720, 0.2))
    ]  # fmt: skip
    text = draw_losses(losses, tmp_path / "losses.svg").read_text()
    for label in ("ddp, 640 steps", "powersgd, 720 steps", "training seconds at 100 Mbit/s (log scale)"):
        assert f">{label}<" in text
