"""What the README says, done: its commands run, its overrides compose, its code works."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import NAME, REPOSITORY, only_run, run_command
from tests.report.made import grid
from ticks.config import compose_strictly
from ticks.sweep.file import read

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line.partition("  #")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
SMALL = ("debug=fast", "test=false", "task.sample_bytes=0", "trainer.limit_val_batches=1")


def test_the_readme_is_short_and_names_no_file_that_is_not_there() -> None:
    assert len(README.splitlines()) < 250
    for path in re.findall(r"(?:configs|tests|src)/[\w./]+\.\w+", README):
        if "scale_norm" not in path:
            assert (REPOSITORY / path).exists(), path


def test_the_makefiles_overrides_compose() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    lines = [line for line in makefile.splitlines() if "train.py" in line or "$(RUN)" in line]
    overrides = [[w for w in line.split() if re.match(r"^[\w.]+=", w)] for line in lines]
    assert overrides
    for words in overrides:
        compose_strictly(words, REPOSITORY / "configs")


def test_make_has_the_targets_that_the_readme_names() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"make (train|test|setup|lint|figure|quality|bench-network|bench)\b", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def table_overrides() -> list[str]:
    rows = README.split("| to change | write |")[1].split("\n\n")[0]
    return [code for code in re.findall(r"`([^`]+)`", rows) if "=" in code]


@pytest.mark.parametrize("overrides", table_overrides())
def test_the_tables_overrides_compose(overrides: str) -> None:
    compose_strictly(shlex.split(overrides), REPOSITORY / "configs")


def test_every_model_of_the_table_composes() -> None:
    row = next(line for line in README.splitlines() if line.startswith("| the norm"))
    for name in ("ln", "ln_ticks", "rms", "rms_ticks", "no_norm"):
        assert name in row
        compose_strictly([f"model={name}"], REPOSITORY / "configs")


def test_every_command_is_known_here() -> None:
    """A command added to the README must be added to the tests below."""
    known = ("make ", "python train.py", ".venv/bin/python train.py", f"{NAME} ", "wandb sweep ")
    assert [c for c in COMMANDS if c and not c.startswith(known)] == []


def test_the_readmes_commands_run(tmp_path: Path) -> None:
    first = next(c for c in COMMANDS if c.startswith(".venv/bin/python train.py"))
    arguments = [a.replace("devices=4", "devices=1") for a in shlex.split(first)[2:]]
    code, output = run_command(tmp_path, *arguments, *SMALL)
    assert code == 0, output
    run_dir = only_run(tmp_path)
    grid(tmp_path / "logs" / "sweeps" / "intervals_x_norms")
    ran = 0
    for command in COMMANDS:
        program, *rest = shlex.split(command) or [""]
        rest = [a.replace("logs/runs/RUN_A", str(run_dir)).replace("logs/runs/RUN_B", str(run_dir)) for a in rest]
        rest = [a.replace("logs/runs/RUN", str(run_dir)).replace("devices=4", "devices=1") for a in rest]
        if program == "python" and "resume=auto" in rest:
            code, output = run_command(tmp_path, "resume=auto", *SMALL, "model=ln_ticks")
            assert "starting a new one" in output
        elif program == "python":
            code, output = run_command(tmp_path, *rest[1:], *(SMALL if "-m" in rest else ()))
        elif program == NAME and rest[0] != "sweep":
            code, output = run_command(tmp_path, *rest, program=NAME)
        elif program in (NAME, "wandb"):
            code = 0 if len(list(read(REPOSITORY / rest[1]).grid())) > 1 else 1
        else:
            continue
        assert code == 0, f"{command}\n{output}"
        ran += 1
    assert ran >= 9
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_readmes_python_works() -> None:
    snippet, norm = (text for kind, text in BLOCKS if kind == "python")
    exec(snippet, {})
    scope: dict = {}
    exec("import torch\nfrom torch import nn\n" + norm + "\ny = ScaleNorm(4)(torch.ones(1, 4))", scope)
    assert scope["y"].tolist() == [[1.0] * 4]
