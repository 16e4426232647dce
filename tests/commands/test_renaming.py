"""A package called by an everyday word gets another name: where the word is the package, and nowhere else."""

from pathlib import PurePath

import pytest

from ticks.commands.renaming import Renaming

RENAMING = Renaming("beat", "my_lab", modules=("data", "run", "strategy"), commands=("report", "sweep"))


def renamed(text: str, file: str = "docs/page.md") -> str:
    return RENAMING.text(PurePath(file), text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import beat", "import my_lab"),
        ("import beat.data\nx = beat.data.beat(beat)", "import my_lab.data\nx = my_lab.data.beat(my_lab)"),
        ("import os, beat.data as d", "import os, my_lab.data as d"),
        ("from beat import data as beat; beat.run()", "from my_lab import data as beat; beat.run()"),
        ("if x:\n    from  beat.strategy import beat", "if x:\n    from  my_lab.strategy import beat"),
        ("é = 'é'; from beat.run import beat", "é = 'é'; from my_lab.run import beat"),
        ("def f():\n    yield from beat", "def f():\n    yield from beat"),
        ("beat = model()\nbeat.run(beat.data)", "beat = model()\nbeat.run(beat.data)"),
        ("BEAT_EVERY = ledger.beat.data", "BEAT_EVERY = ledger.beat.data"),
        ("x = 'beat.data.Corpus'  # see beat.run", "x = 'my_lab.data.Corpus'  # see my_lab.run"),
        ("x = r'_target_=beat\\.data: a'", "x = r'_target_=my_lab\\.data: a'"),
        ("x = 'import beat.run\\nbeat.run.go()'", "x = 'import my_lab.run\\nmy_lab.run.go()'"),
        ("x = ['-m', 'beat', 'train']", "x = ['-m', 'my_lab', 'train']"),
        ("x = ['beat', 'report', 'beat']", "x = ['my_lab', 'report', 'beat']"),
        ("run('eval', program='beat', strategy='beat')", "run('eval', program='my_lab', strategy='beat')"),
        ("if program == 'beat' and system == 'beat': ...", "if program == 'my_lab' and system == 'beat': ..."),
        ("root / 'src' / 'beat' / 'beat'", "root / 'src' / 'my_lab' / 'beat'"),
        ("print(f'beat: worker {beat.data} ended')", "print(f'my_lab: worker {beat.data} ended')"),
        ("Thread(name='beat-watch', prefix='.beat-')", "Thread(name='my_lab-watch', prefix='.my_lab-')"),
        ("x = ('BEAT_CACHE', '$BEAT_CACHE', 'AT_BEAT_X')", "x = ('MY_LAB_CACHE', '$MY_LAB_CACHE', 'AT_BEAT_X')"),
        ("x = ('beat', 'ln_beat', 'beat/loss', 'on beat')", "x = ('beat', 'ln_beat', 'beat/loss', 'on beat')"),
        ("def f(project: str = 'beat', x='beat'): ...", "def f(project: str = 'my_lab', x='beat'): ..."),
        ("import beat.run\nf'{{beat}} {beat.run} beat'", "import my_lab.run\nf'{{beat}} {my_lab.run} beat'"),
    ],
)  # fmt: skip
def test_in_python(before: str, after: str) -> None:
    assert renamed(before, "tests/test_it.py") == after


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("configs/model/norm.yaml", "_target_: beat.data.Norm\nname: beat", "_target_: my_lab.data.Norm\nname: beat"),
        ("configs/strategy/a.yaml", "- beat\n- adapter: beat # at beat", "- beat\n- adapter: beat # at beat"),
        ("configs/train.yaml", "name: beat # of runs\n- strategy: beat", "name: my_lab # of runs\n- strategy: beat"),
        ("configs/logger/wandb.yaml", "wandb:\n  project: beat", "wandb:\n  project: my_lab"),
        ("pyproject.toml", '[project]\nname = "beat"', '[project]\nname = "my_lab"'),
        ("pyproject.toml", 'beat = "beat.__main__:main"', 'my_lab = "my_lab.__main__:main"'),
        ("pyproject.toml", 'packages = ["src/beat"]', 'packages = ["src/my_lab"]'),
        ("README.md", "# beat\n\nbeat is one\n# beat", "# my_lab\n\nbeat is one\n# beat"),
        ("docs/beat.md", "# beat\n", "# beat\n"),
        ("Makefile", "\t$(BIN)/beat report beat", "\t$(BIN)/my_lab report beat"),
        ("docs/a.md", "`beat sweep x.yaml`, each `beat` command", "`my_lab sweep x.yaml`, each `my_lab` command"),
        ("docs/a.md", "strategy=beat report=1, on beat, beat by beat", "strategy=beat report=1, on beat, beat by beat"),
        ("docs/a.md", "src/beat/data, src/beat, beat/run.py", "src/my_lab/data, src/my_lab, my_lab/run.py"),
        ("docs/a.md", "configs/strategy/beat.yaml, beat/loss", "configs/strategy/beat.yaml, beat/loss"),
        ("docs/a.md", "~/.cache/beat or $BEAT_CACHE", "~/.cache/my_lab or $MY_LAB_CACHE"),
        ("LICENSE", "Copyright (c) the beat authors", "Copyright (c) the beat authors"),
    ],
)
def test_elsewhere(file: str, before: str, after: str) -> None:
    assert renamed(before, file) == after


def test_the_package_alone_moves() -> None:
    for path, other in {
        "src/beat/data/beat.py": "src/my_lab/data/beat.py",
        "configs/strategy/beat.yaml": "configs/strategy/beat.yaml",
        "docs/src/beat/a.md": "docs/src/beat/a.md",
    }.items():
        assert RENAMING.path(PurePath(path)) == PurePath(other)


def test_python_that_is_none_is_an_error() -> None:
    with pytest.raises(SyntaxError):
        renamed("from beat import (", "a.py")
