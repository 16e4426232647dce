"""Weights & Biases without a network: one id per run directory, the configuration where sweeps cannot reach it, and
failures that are told. What was logged is read back from W&B's own file."""

import contextlib
import http.server
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric.loggers.logger import _DummyExperiment as DummyExperiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from tests.conftest import free_port, run_workers
from ticks.record import wandb as ours


def _runs(run_dir: str, config: dict[str, Any], exit_codes: list[int]) -> list[str]:
    """The ids of one W&B run per exit code, all in the same directory, as if each resumed the one before."""
    os.environ |= {"WANDB_SILENT": "true", "WANDB_MODE": "offline"}
    ids = []
    for step, exit_code in enumerate(exit_codes):
        logger = ours.wandb_logger(run_dir=run_dir, name="a run", tags=["test"], project="trial")
        ours.log_config([logger], config, {"trainer.max_steps": "4"})
        logger.log_metrics({"val/loss": 1.5}, step=step)
        ours.log_result(
            [logger],
            {"status": "finished", "val_loss": 1.5},
            [("loss", "2", "1")],
            shown="a text",
            picture=picture_in(run_dir),
        )
        ids.append(logger.experiment.id)
        ours.finish(exit_code)
        import wandb

        assert wandb.run is None
    wandb.teardown()
    return ids


def picture_in(run_dir: str) -> Path:
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(path := Path(run_dir) / "sample.png")
    return path


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[dict[str, Any]]]:
    run_dir = tmp_path_factory.mktemp("run")
    config = {"seed": 0, "trainer": {"max_steps": 4}}
    ((ids),) = run_workers(1, _runs, str(run_dir), config, [1, 0])
    files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json"]
    outputs = [subprocess.run([*command, file], capture_output=True, text=True).stdout for file in files]
    if not all(output.startswith("{") for output in outputs):
        pytest.skip("this W&B has no `wandb leet inspect` to read its files back")
    return ids, [json.loads(output) for output in outputs]


def test_a_continued_run_keeps_its_id(logged: Any) -> None:
    (first, second), summaries = logged
    assert first == second
    assert len(summaries) == 2


def test_a_failed_run_is_marked_failed_and_a_finished_one_is_not(logged: Any) -> None:
    _, (failed, finished) = logged
    assert "fail" in json.dumps(failed["state"])
    assert "fail" not in json.dumps(finished["state"])


def test_the_resolved_configuration_lies_under_a_key_of_its_own(logged: Any) -> None:
    text = json.dumps(logged[1][0])
    assert '"resolved' in text
    assert "sweep_coordinates" in text
    config = logged[1][0]["config"]
    assert not {"seed", "trainer", "trainer.max_steps"} & config.keys()


def test_metrics_arrive(logged: Any) -> None:
    assert "val/loss" in json.dumps(logged[1][0])


def test_the_result_a_sample_and_a_picture_arrive(logged: Any) -> None:
    summary = logged[1][1]["summary"]
    found = {name: json.loads(value) if isinstance(value, str) else value for name, value in summary.items()}
    assert {"result", "sample", "picture"} <= set(found), summary
    assert "1.5" in json.dumps([value for key, value in found.items() if key.startswith("run")])


def test_another_directory_is_another_run(tmp_path: Path) -> None:
    first, second = (ours._run_id(tmp_path / name) for name in "ab")
    assert first != second
    assert ours._run_id(tmp_path / "a") == first


def test_under_an_agent_the_agents_run_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-agent")
    assert ours.wandb_logger(run_dir=str(tmp_path), offline=True)._id == "of-the-agent"


@pytest.mark.parametrize(
    ("environment", "online"),
    [
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "x" * 40}, False),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "x" * 40}, False),
        ({"WANDB_MODE": "online", "WANDB_API_KEY": "x" * 40}, True),
        ({"WANDB_API_KEY": "x" * 40}, True),
    ],
)
def test_a_run_is_online_exactly_if_there_is_a_key_and_nothing_else_was_said(
    environment: dict[str, str], online: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ours.wandb_logger(run_dir=str(tmp_path))._offline is not online


def _logger_without_key(run_dir: str, home: str) -> tuple[bool, Any]:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        os.environ.pop(name, None)
    os.environ |= {"HOME": home, "WANDB_CONFIG_DIR": home, "WANDB_SILENT": "true"}
    logger = ours.wandb_logger(run_dir=run_dir)
    return logger._offline, logger._log_model


def test_without_a_key_a_run_is_offline_and_uploads_nothing(tmp_path: Path) -> None:
    assert run_workers(1, _logger_without_key, str(tmp_path), str(tmp_path)) == [(True, False)]


@pytest.fixture
def mute_port() -> Iterator[int]:
    """Accepts, and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        yield server.getsockname()[1]


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """Answers 501 to everything."""
    handler = type("Silent", (http.server.BaseHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_whether_a_server_answers_is_known_in_time(
    mute_port: int, refusing_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ours.answers(f"http://127.0.0.1:{refusing_port}", 5.0)
    assert capsys.readouterr().err == ""
    for port in (mute_port, free_port()):
        began = time.monotonic()
        assert not ours.answers(f"http://127.0.0.1:{port}", 0.7)
        assert 0.5 < time.monotonic() - began < 3
        (line,) = capsys.readouterr().err.splitlines()
        assert f"http://127.0.0.1:{port} does not answer; going on offline after 0.7 s (logger.wandb.timeout)" in line
        assert "logger.wandb.offline=true" in line


def _log_to(port: int, run_dir: str) -> tuple[float, bool, int, str]:
    """Seconds until a run had begun, whether it is offline, how many rows it took, what was said."""
    os.environ |= {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "a" * 40, "WANDB_SILENT": "true"}
    began = time.monotonic()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        logger = ours.wandb_logger(run_dir=run_dir, timeout=0.5)
        logger.log_metrics({"val/loss": 1.5}, step=0)
        seconds = time.monotonic() - began
        files = len(list(Path(run_dir).glob("wandb/offline-run-*/*.wandb")))
        ours.finish(0)
    return seconds, logger._log_model, files, said.getvalue()


def test_a_server_that_does_not_answer_is_done_without(mute_port: int, tmp_path: Path) -> None:
    ((seconds, uploads, files, said),) = run_workers(1, _log_to, mute_port, str(tmp_path))
    assert seconds < 30
    assert (uploads, files) == (False, 1)
    how, why = [line for line in said.splitlines() if line.startswith("W&B: ")]
    assert "WANDB_MODE=offline" in how
    assert why.endswith("has not answered for 0.5 s; this run is logged offline, `wandb sync` uploads it later")


def test_a_server_with_which_no_run_can_be_begun_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def init(**arguments: Any) -> str:
        if arguments.get("mode") != "offline":
            raise wandb.errors.CommError("bad gateway\nmore")
        return "a run"

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(ours, "answers", lambda server, seconds: True)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    assert ours.wandb_logger(run_dir=str(tmp_path)).experiment == "a run"
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be used: bad gateway; this run is logged offline" in line


def test_what_wandb_refuses_is_a_mistake_and_no_run_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def init(**arguments: Any) -> None:
        raise wandb.errors.UsageError("project name a/b: cannot contain characters /\nmore")

    monkeypatch.setattr(wandb, "init", init)
    logger = ours.wandb_logger(run_dir=str(tmp_path), offline=True, project="a/b")
    for use in (lambda: logger.log_metrics({"a": 1.0}, 1), lambda: ours.log_config([logger], {}, {})):
        with pytest.raises(MisconfigurationException, match=r"^logger\.wandb: project name a/b: cannot contain .* /$"):
            use()
    assert not logger.lost


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_no_time_is_refused(tmp_path: Path, timeout: float) -> None:
    with pytest.raises(ValueError, match=r"timeout=.* must be a finite number of seconds above 0"):
        ours.wandb_logger(run_dir=str(tmp_path), timeout=timeout)


def test_finishing_without_a_run_is_no_error() -> None:
    ours.finish(1)


def test_other_loggers_get_no_configuration() -> None:
    ours.log_config([object()], {"seed": 0}, {})


def test_a_worker_other_than_0_has_the_logger_and_asks_says_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask() -> bool:
        raise AssertionError("looked for a key")

    monkeypatch.setattr(ours, "_has_key", ask)
    monkeypatch.setattr(ours.rank_zero_only, "rank", 1)
    logger = ours.wandb_logger(run_dir=str(tmp_path / "run"), name="a run")
    logger.log_metrics({"val/loss": 1.5}, step=0)
    assert isinstance(logger.experiment, DummyExperiment)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("first", "arguments"),
    [
        ("log_metrics", ({"a": 1.0}, 1)),
        ("log_hyperparams", ({"a": 1},)),
        ("after_save_checkpoint", (ModelCheckpoint(),)),
        ("finalize", ("success",)),
    ],
)
def test_a_wandb_process_that_is_gone_ends_no_training(
    first: str,
    arguments: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("Connection lost")

    for name in ("log_metrics", "log_hyperparams", "after_save_checkpoint", "finalize"):
        monkeypatch.setattr(f"lightning.pytorch.loggers.WandbLogger.{name}", lost)
    logger = ours.wandb_logger(run_dir=str(tmp_path), offline=True)
    logger._experiment = SimpleNamespace(id="a run that has begun")
    getattr(logger, first)(*arguments)
    logger.log_metrics({"a": 2.0}, step=2)
    logger.log_hyperparams({"a": 2})
    ours.log_config([logger], {"seed": 0}, {})
    logger.experiment.log({"a": 3.0})  # as a module of the user's may
    logger.after_save_checkpoint(ModelCheckpoint())
    logger.finalize("success")
    assert capsys.readouterr().out.count("nothing more is logged there (ConnectionResetError: Connection lost)") == 1
    fake = SimpleNamespace(run=object(), finish=lost)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    ours.finish(0)


def test_a_wandb_process_that_dies_while_a_run_begins_ends_no_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(*_: Any, **__: Any) -> None:
        raise RuntimeError("wandb-core exited with code -9")

    monkeypatch.setattr("wandb.init", dies)
    logger = ours.wandb_logger(run_dir=str(tmp_path), offline=True)
    logger.log_hyperparams({"a": 1})
    ours.log_config([logger], {"seed": 0}, {})
    logger.log_metrics({"a": 2.0}, step=2)
    assert isinstance(logger.experiment, DummyExperiment)
    assert capsys.readouterr().out.count("nothing more is logged there (RuntimeError: wandb-core exited") == 1
