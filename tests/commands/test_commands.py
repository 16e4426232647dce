"""Mistakes on the `ticks` command line: exit code 2, one line that names them, no stack trace."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import NAME, REPOSITORY, only_run, run_command
from ticks.commands import COMMANDS, main
from ticks.commands.options import where_it_began
from ticks.config import compose_strictly

CONFIGS = REPOSITORY / "configs"


@pytest.fixture
def ticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`ticks ARGUMENTS` in this process, in an empty directory: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [NAME, *arguments])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code  # type: ignore[assignment]
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run_without_checkpoint(tmp_path: Path) -> Path:
    config = compose_strictly(["debug=fast"], CONFIGS)
    directory = tmp_path / "run"
    (directory / "checkpoints").mkdir(parents=True)
    config.choices = {"model": "ln"}
    OmegaConf.save(config, directory / "config.yaml", resolve=True)
    return directory


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_without_a_command_the_help_names_them_all(ticks, arguments: list[str]) -> None:
    code, out, _ = ticks(*arguments)
    assert code == 0
    assert all(f"\n  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_its_usage_its_options_and_an_example(ticks, command: str) -> None:
    texts = [ticks(*arguments) for arguments in ([command, "--help"], [command, "a=1", "-h"], ["help", command])]
    (code, out, _), *others = texts
    assert others == texts[1:] == [texts[0]] * 2
    assert code == 0
    assert out.startswith(f"Usage: {NAME} {command} ")
    assert f"Example: {NAME} {command} " in out
    assert max(map(len, out.splitlines())) <= 75 + len(NAME)
    source = inspect.getsource(import_module(f"ticks.commands.{command}")).rpartition('"""')[2]
    given = re.search(r"split\(arguments, (.*)\)\n", source)
    for option, default in re.findall(r'(\w+)=(None|"[^"]*")', given[1] if given else ""):
        shown = re.search(rf"^  {option}=.*?\((required|default: [^)]*)\)", out, flags=re.DOTALL | re.MULTILINE)
        assert shown, option
        assert default == "None" or default.strip('"') in shown[1]


def test_help_for_a_command_that_is_not_there_names_those_that_are(ticks) -> None:
    assert ticks("help", "evl")[2].startswith("error: unknown command 'evl'; did you mean 'eval'?")


def test_help_needs_no_torch() -> None:
    code = """
import inspect
import re
import subprocess
import sys
from pathlib import Path
from ticks.commands import main
from ticks.usage import usage
sys.argv = ["ticks", "eval", "--help"]
main()
usage(Path("configs"))
print({"torch", "lightning", "wandb"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONFIGS.parent)
    assert done.stdout.endswith("set()\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evl"], "unknown command 'evl'; did you mean 'eval'? valid: "),
        (["eval"], "give the run's directory: run=logs/runs/..."),
        (["eval", "run="], "give the run's directory: run=logs/runs/..."),
        (["eval", "run=nowhere"], "'nowhere' is no run directory: it has no config.yaml"),
        (["generate"], "give the run's directory"),
        (["generate", "run=nowhere"], "'nowhere' is no run directory"),
        (["generate", "run=nowhere", "temprature=1"], "unknown option 'temprature=1'; did you mean 'temperature'?"),
        (["generate", "nowhere"], "unknown option 'nowhere'; valid: bytes, prompt, run, seed, temperature"),
        (["generate", "run=nowhere", "bytes=many"], "bytes=many must be a whole number of at least 0"),
        (["generate", "run=nowhere", "bytes=1.5"], "bytes=1.5 must be a whole number of at least 0"),
        (["generate", "run=nowhere", "bytes=-1"], "bytes=-1 must be a whole number of at least 0"),
        (["generate", "run=nowhere", "seed=-1"], "seed=-1 must be a whole number of at least 0"),
        (["generate", "run=nowhere", "temperature=hot"], "temperature=hot must be a number of at least 0"),
        (["generate", "run=nowhere", "temperature=nan"], "temperature=nan must be a number of at least 0"),
        (["generate", "run=nowhere", "temperature=-1"], "temperature=-1 must be a number of at least 0"),
        (["report"], "give run directories: ticks report"),
        (["report", "out=a.png"], "give run directories: ticks report"),
        (["report", "nowhere"], "no run in 'nowhere', which does not exist"),
        (["sweep"], "give a sweep file: ticks sweep configs/sweep/intervals.yaml"),
        (["sweep", "nothing.yaml"], "sweep file 'nothing.yaml' does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(ticks, arguments: list[str], message: str) -> None:
    code, out, err = ticks(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["eval", "generate"])
def test_a_run_without_a_checkpoint_is_named(ticks, run_without_checkpoint: Path, command: str) -> None:
    code, _, err = ticks(command, f"run={run_without_checkpoint}")
    assert code == 2
    assert err == f"error: no usable checkpoint in {run_without_checkpoint}/checkpoints\n"


@pytest.mark.parametrize("content", ["", "a: [1", "- a"])
def test_a_run_with_a_damaged_configuration_is_named(ticks, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    code, _, err = ticks("eval", f"run={tmp_path}")
    assert code == 2
    assert err.startswith(f"error: {tmp_path}/config.yaml ")
    assert err.count("\n") == 1


def test_the_newest_runs_are_offered_where_one_is_not_found(ticks, tmp_path: Path) -> None:
    for name in ("a", "b"):
        directory = tmp_path / "logs" / "runs" / name
        directory.mkdir(parents=True)
        (directory / "config.yaml").write_text("seed: 0\n")
    assert "; the newest runs: logs/runs/a, logs/runs/b" in ticks("eval", "run=logs/runs/c")[2]


@pytest.mark.parametrize("override", ["data.blok_size=3", "model=rms", "nonsense"])
def test_a_run_is_measured_with_its_own_configuration(ticks, run_without_checkpoint: Path, override: str) -> None:
    code, _, err = ticks("eval", f"run={run_without_checkpoint}", override)
    assert code == 2
    assert override.partition("=")[0] in err
    assert len(err.splitlines()) == 1


def test_a_run_is_used_from_another_directory_with_the_paths_it_was_started_with(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    for place in (home, elsewhere / "other"):
        place.mkdir(exist_ok=True)
        (place / "book.txt").write_text("".join(f"Sentence {i} of a {place.name}.\n\n" for i in range(2000)))
    small = ("debug=fast", "test=false", "task.sample_bytes=0", "trainer.max_steps=4")
    assert run_command(home, *small, "data=text", "data.path=book.txt")[0] == 0
    run = f"run=../home/{only_run(home).relative_to(home)}"
    code, output = run_command(elsewhere, "eval", run, program="ticks")
    assert code == 0, output
    loss = next(line.split() for line in output.splitlines() if line.startswith("val_loss"))
    assert loss[1] == loss[3]
    code, output = run_command(elsewhere, "eval", run, "data.path=other/book.txt", "test=false", program="ticks")
    assert code == 0, output
    loss = next(line.split() for line in output.splitlines() if line.startswith("val_loss"))
    assert loss[1] != loss[3]
    code, output = run_command(elsewhere, "generate", run, "bytes=5", program="ticks")
    assert code == 0, output
    assert [path.name for path in elsewhere.iterdir() if path.is_dir()] == ["other"]


def test_the_command_as_users_run_it_ends_the_same_way(tmp_path: Path) -> None:
    assert run_command(tmp_path, "evl", program="ticks") == (
        2,
        "error: unknown command 'evl'; did you mean 'eval'? valid: " + ", ".join(sorted(COMMANDS)) + "\n",
    )


def test_classes_beside_train_py_are_found_from_wherever_a_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "logs").mkdir(parents=True)
    (tmp_path / "home" / "beside_it.py").write_text("VALUE = 3")
    run = tmp_path / "home" / "logs" / "mine"
    run.mkdir()
    (run / "config.yaml").write_text("run_dir: logs/mine\noptimizer: {}\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with where_it_began(Path("home/logs/mine")):
        module = "beside_it"
        assert import_module(module).VALUE == 3
        assert Path.cwd() == tmp_path / "home"
    assert (sys.path, Path.cwd()) == (before, tmp_path)
