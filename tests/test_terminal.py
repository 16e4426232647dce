"""What is only shown never ends a run: any encoding, a reader that left, a full disk, no stdout at all."""

import io
import json
import multiprocessing as mp
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, _command, only_run
from ticks import train
from ticks.job import Job
from ticks.record import summary

SCRIPT = """
import sys
from ticks.terminal import forgive, lost_output
forgive(), forgive()
print("π │ 春 \\udce9")
print("π", file=sys.stderr)
{more}
"""


def script(more: str = "", *flags: str, **options) -> subprocess.CompletedProcess[bytes]:
    options["env"] = {"PYTHONPATH": str(REPOSITORY / "src")} | options.get("env", {})
    command = [sys.executable, *flags, "-c", SCRIPT.format(more=more)]
    return subprocess.run(command, **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60} | options))


@pytest.mark.parametrize("flags", [(), ("-u",)])
@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"? ? ? ?\n"), ("latin-1", b"? ? ? ?\n"), ("utf-8", "π │ 春 ?\n".encode())]
)
def test_a_character_that_the_terminal_lacks_becomes_another(encoding: str, shown: bytes, flags: tuple) -> None:
    done = script("", *flags, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout) == (0, shown)
    assert done.stderr in (b"\\u03c0\n", "π\n".encode())


@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_a_reader_that_left_takes_nothing_with_it(flags: tuple) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = script("print('more' * 100_000); print(lost_output(), file=sys.stderr)", *flags, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, b"None")


@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_a_full_disk_takes_nothing_with_it_but_is_known(flags: tuple) -> None:
    with open("/dev/full", "wb") as full:
        done = script("print(lost_output().strerror, file=sys.stderr)", *flags, stdout=full)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, b"No space left on device")


def test_streams_that_were_closed_stay_closed_and_no_file_takes_their_number(tmp_path: Path) -> None:
    more = f"file = open({str(tmp_path / 'opened')!r}, 'w'); sys.exit(file.fileno() <= 2)"
    command = [sys.executable, "-c", SCRIPT.format(more=more)]
    with_closed = ["sh", "-c", '"$@" >&- 2>&-', "sh", *command]
    assert subprocess.run(with_closed, env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}).returncode == 0


def test_tables_are_drawn_with_what_the_encoding_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from ticks.record.result import result_rows, show_result

    about = dict.fromkeys(summary.KEYS) | {"strategy": "ticks", "steps": 1, "ticks": 1, "world_size": 1}
    for encoding, line in (("latin-1", "-----"), ("utf-8", "─────")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
        monkeypatch.setattr(sys, "stdout", stream)
        rows = result_rows(about, measures=[], before={}, baselines={}, ddp_bytes=None, measuring_bytes=0)
        show_result(about, rows, shown="grün π")
        stream.flush()
        drawn = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert line in drawn
        assert "grün" in drawn


def run_into(output: str, directory: Path, *arguments: str, program: str = "train.py") -> mp.process.BaseProcess:
    """A forked command whose stdout and stderr are the file `output`."""
    arguments_and_output = (directory, arguments, program, {}, Path(output), REPOSITORY / "configs")
    process = mp.get_context("fork").Process(target=_command, args=arguments_and_output)
    process.start()
    return process


FAST = ("debug=fast", "trainer.max_steps=4", "callbacks=none", "trainer.limit_val_batches=1", "test=false")


def test_a_run_whose_reader_leaves_goes_on_to_its_end(tmp_path: Path) -> None:
    """`python train.py ... | head -1`"""
    os.mkfifo(pipe := tmp_path / "pipe")
    run = run_into(str(pipe), tmp_path, *FAST)
    with pipe.open() as lines:
        assert lines.readline().startswith("run directory logs/runs/")
    run.join(90)
    assert run.exitcode == 0
    assert summary.read(only_run(tmp_path))["status"] == "finished"


def test_a_run_whose_output_fills_the_disk_goes_on_to_its_end(tmp_path: Path) -> None:
    run = run_into("/dev/full", tmp_path, *FAST)
    run.join(90)
    assert run.exitcode == 0
    assert summary.read(only_run(tmp_path))["status"] == "finished"


def test_a_command_whose_result_is_lost_says_so(tmp_path: Path) -> None:
    summary.write(tmp_path, {"strategy": "ddp", "steps": 1})
    run = run_into("/dev/full", tmp_path, "report", ".", program="ticks")
    run.join(60)
    assert run.exitcode == 1


def test_other_workers_forgive_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[str] = []
    monkeypatch.setattr(train, "forgive", lambda: called.append("forgive"))
    monkeypatch.setattr(train, "run", lambda job, jobfile: called.append("run"))
    job = Job("fit", {}, {}, str(tmp_path), "")
    (tmp_path / "job.json").write_text(json.dumps(asdict(job)))
    train.worker(str(tmp_path / "job.json"))
    assert called == ["forgive", "run"]
