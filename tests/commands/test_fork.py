"""`fork`: this repository under another name, whole and green, with the words of its subject as they were."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path, PurePath

import pytest

from tests.conftest import NAME, REPOSITORY
from ticks.commands import fork
from ticks.config import ConfigError

NEW, OTHER = f"my_{NAME}", f"your_{NAME}"
MODULES = "|".join(path.stem for path in (REPOSITORY / "src" / "ticks").iterdir())
NEEDS_GIT = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
PARTS = ("tests/test_house.py", "tests/models/test_adapter.py", "tests/commands/in_a_fork.py")


def git(place: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module", autouse=True)
def _somebody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Git knows who commits, and that they keep their own notes to themselves."""
    known = tmp_path_factory.mktemp("home") / "gitconfig"
    (known.parent / "ignored").write_text("*.md\n")
    known.write_text(
        f"[user]\nname = Somebody\nemail = somebody@example.org\n[core]\nexcludesFile = {known.parent / 'ignored'}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
            patch.delenv(f"GIT_{name}", raising=False)
        patch.setenv("GIT_CONFIG_GLOBAL", str(known))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fork, and what was said of it."""
    place = tmp_path_factory.mktemp("forks") / "fork"
    said = StringIO()
    with redirect_stdout(said):
        fork.main([str(place), f"name={NEW}"])
    return place, said.getvalue()


def files(place: Path) -> dict[PurePath, bytes]:
    """Its files by their paths, without git's own and what a run of its tests leaves."""
    left = {".git", "__pycache__", ".ruff_cache", ".pytest_cache"}
    found = (path for path in place.rglob("*") if path.is_file() and left.isdisjoint(path.parts))
    return {PurePath(path.relative_to(place)): path.read_bytes() for path in found}


def run_in(place: Path, tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`python COMMAND` in the fork, where the package that it came from cannot be imported."""
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / f"{NAME}.py").write_text("raise ImportError('the package of before')\n")
    path = os.pathsep.join([str(tmp_path / "gone"), str(place / "src"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *command], cwd=place, env=env, capture_output=True, text=True, timeout=200)


# ---- what stands in it ------------------------------------------------------------------------------------------


def test_it_holds_every_file_of_this_repository_and_no_run(forked: tuple[Path, str]) -> None:
    here = {re.sub(rf"^src/{NAME}/", f"src/{NEW}/", str(path)) for path in fork.files_of(REPOSITORY)}
    there = {str(path) for path in files(forked[0])}
    assert there == here
    assert {"README.md", "train.py", f"src/{NEW}/train.py", "tests/test_train.py", "logs/.gitkeep"} <= there
    assert [path for path in there if path.startswith("logs/")] == ["logs/.gitkeep"]
    assert os.access(forked[0] / ".ci/run", os.X_OK)


def test_no_code_of_it_names_the_old_package(forked: tuple[Path, str]) -> None:
    dotted = re.compile(rf"(?<![\w./]){NAME}\\?\.(?:{MODULES})\b|\bsrc/{NAME}\b|(?<!\w){NAME.upper()}_[A-Z]")
    for path, content in files(forked[0]).items():
        if path.suffix == ".py":
            nodes = list(ast.walk(ast.parse(content)))
            modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
            modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            assert NAME not in {str(module).partition(".")[0] for module in modules}, path
            texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        else:
            texts = [content.decode(errors="ignore")]
        assert not [text for text in texts if dotted.search(text)], path


def test_what_names_the_project_has_the_new_name(forked: tuple[Path, str]) -> None:
    place, _ = forked
    assert f'name = "{NEW}"\n' in (place / "pyproject.toml").read_text()
    assert f'\n{NEW} = "{NEW}.__main__:main"\n' in (place / "pyproject.toml").read_text()
    assert f"\nname: {NEW} " in (place / "configs/train.yaml").read_text()
    assert f"\n  project: {NEW}\n" in (place / "configs/logger/wandb.yaml").read_text()
    assert (place / "README.md").read_text().startswith(f"# {NEW}\n")
    assert f"{NEW.upper()}_CACHE" in (place / "README.md").read_text()
    assert f"$(BIN)/{NEW} report" in (place / "Makefile").read_text()


def test_the_words_of_the_subject_stay(forked: tuple[Path, str]) -> None:
    place, _ = forked
    assert f"_target_: {NEW}.strategy.TickStrategy\n" in (place / "configs/strategy/ticks.yaml").read_text()
    assert f"_target_: {NEW}.models.TicksAdapter\n" in (place / "configs/model/adapter/ticks.yaml").read_text()
    assert "- adapter: ticks\n" in (place / "configs/model/ln_ticks.yaml").read_text()
    assert "- strategy: ticks " in (place / "configs/train.yaml").read_text()
    assert '"ticks"' in (place / f"src/{NEW}/record/summary.py").read_text()
    for same in ("LICENSE", "constraints.txt", "tests/golden/losses.json"):
        assert (place / same).read_bytes() == (REPOSITORY / same).read_bytes()


def test_ruff_finds_nothing_in_it(forked: tuple[Path, str]) -> None:
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
        done = subprocess.run(ruff, cwd=forked[0], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@NEEDS_GIT
def test_its_first_commit_holds_all_of_it(forked: tuple[Path, str]) -> None:
    place, said = forked
    assert git(place, "log", "--format=%an %s").startswith(f"Somebody {NEW}, from {NAME} ")
    assert git(place, "rev-list", "--count", "HEAD") == "1\n"
    assert git(place, "status", "--porcelain", "--ignored", "--", *map(str, files(place))) == ""
    assert len(git(place, "ls-files").splitlines()) == len(files(place))
    commit = git(place, "rev-parse", "--short", "HEAD").strip()
    assert said.startswith(f"{NEW} lies in {place}, with ")
    assert said.splitlines()[0].endswith(f"with a first commit, {commit}. Now:")
    assert [line.split("#")[0].strip() for line in said.splitlines()[1:]] == [f"cd {place}", "make setup", "make test"]


# ---- what it does -----------------------------------------------------------------------------------------------


@pytest.mark.workers
def test_a_part_of_its_own_suite_passes(forked: tuple[Path, str], tmp_path: Path) -> None:
    done = run_in(forked[0], tmp_path, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", *PARTS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.workers  # no worker, but seconds
def test_its_own_fork_is_what_a_fork_from_here_is(forked: tuple[Path, str], tmp_path: Path) -> None:
    done = run_in(forked[0], tmp_path, "-m", NEW, "fork", str(tmp_path / "second"), f"name={OTHER}")
    assert done.returncode == 0, done.stderr
    fork.fork(REPOSITORY, tmp_path / "first", OTHER)
    first, second = files(tmp_path / "first"), files(tmp_path / "second")
    assert first.keys() == second.keys()
    for path in [path for path in first if first[path] != second[path]]:
        if path.suffix == ".py":  # a line that was wrapped once stays so
            assert ast.dump(ast.parse(first[path])) == ast.dump(ast.parse(second[path])), path
        else:
            assert path.name == "pyproject.toml", path
            assert first[path] == second[path].replace(b'"E501", ', b"")


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one folder for the copy: "),
        ([""], "give one folder for the copy: "),
        (["a", "b"], "give one folder for the copy: "),
        (["new", "nmae=x"], "unknown option 'nmae=x'; did you mean 'name'? valid: name"),
        (["full"], "full is not empty: name a folder that is not there yet, or empty"),
        (["full/file"], "full/file is a file: name a folder that is not there yet, or empty"),
        (["full/file/new"], "nothing was forked to full/file/new: Not a directory"),
        ([str(REPOSITORY)], f"{REPOSITORY} lies inside of {REPOSITORY}: a fork lies elsewhere"),
        ([f"{REPOSITORY}/src/../new"], f"{REPOSITORY}/src/../new lies inside of {REPOSITORY}"),
        (["my-lab"], "name=my-lab must be lower-case letters, digits and _"),
        (["new", "name="], "name= must be lower-case letters"),
        (["new", "name=1lab"], "name=1lab must be lower-case letters"),
        (["new", "name=Lab"], "name=Lab must be lower-case letters"),
        (["new", "name=lab_"], "name=lab_ must be lower-case letters"),
        (["new", "name=class"], "name=class is a keyword of Python"),
        (["new", "name=match"], "name=match is a keyword of Python"),
        (["new", "name=json"], "name=json is a module of Python's standard library"),
        (["new", "name=torch"], "name=torch is a package that is installed or needed"),
        (["new", "name=torchft"], "name=torchft is a package that is installed or needed"),
        (["new", "name=tests"], "name=tests is tests in the repository already"),
        (["new", "name=train"], "name=train is train.py in the repository already"),
        (["new", "name=model"], "name=model is configs/model in the repository already"),
        (["new", f"name={NAME}"], f"name={NAME} is this package's own"),
    ],
    ids=lambda value: " ".join(value).replace(str(REPOSITORY), "HERE") if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        fork.main(arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["full", "full/file"]


@pytest.mark.parametrize("was_there", [False, True], ids=["a new folder", "an empty folder"])
def test_a_fork_that_fails_leaves_nothing(was_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device", "README.md")

    monkeypatch.setattr(fork, "first_commit", full)
    monkeypatch.setattr(fork, "files_of", lambda repository: [PurePath("README.md"), PurePath("pyproject.toml")])
    place = tmp_path / "lab"
    if was_there:
        place.mkdir()
    with pytest.raises(ConfigError, match=f"nothing was forked to {place}: No space left on device: README.md"):
        fork.main([str(place)])
    assert list(tmp_path.rglob("*")) == [place] * was_there


# ---- what is copied, what is committed --------------------------------------------------------------------------

LEFT_OUT = (
    "logs/runs/one/config.yaml", "logs/a.txt", "elsewhere/run/summary.json", "elsewhere/run/checkpoints/final.ckpt",
    ".venv/bin/python", ".venv/pyvenv.cfg", "src/ticks/__pycache__/a.pyc", ".mypy_cache/CACHEDIR.TAG",
    ".mypy_cache/x.json", "build/a.py",
)  # fmt: skip
COPIED = (".github/test.yml", "logs/.gitkeep", "pyproject.toml", "src/ticks/new.py", "summary.json")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in (*LEFT_OUT, *COPIED):
        (file := tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "here"


@NEEDS_GIT
def test_what_git_would_track_is_copied_but_no_run(repository: Path) -> None:
    (repository / ".gitignore").write_text(".venv\n__pycache__\n.mypy_cache\nbuild\nlogs/runs/\n")
    git(repository, "init")
    git(repository, "add", "pyproject.toml", ".github", "logs")
    (repository / "gone.py").touch()
    git(repository, "add", "gone.py")
    (repository / "gone.py").unlink()
    (repository / "link").symlink_to("src/ticks")
    assert sorted(map(str, fork.files_of(repository))) == sorted([*COPIED, ".gitignore", "link"])


def test_without_git_all_but_caches_environments_and_runs_is_copied(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(map(str, fork.files_of(repository))) == sorted(COPIED)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sorted(map(str, fork.files_of(repository))) == sorted(COPIED)


@NEEDS_GIT
def test_where_git_knows_nobody_or_is_missing_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("EMAIL", "somebody@example.org")  # from which git would guess
    assert fork.first_commit(tmp_path, "all") == "without a first commit (git commit: Author identity unknown)"
    assert git(tmp_path, "ls-files") == "file\n"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fork.first_commit(tmp_path, "all") == "without a first commit (git init: git is not installed)"


@NEEDS_GIT
def test_a_commit_goes_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    for folder in (place, other):
        folder.mkdir()
        (folder / "file").touch()
    git(other, "init")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook
    assert fork.first_commit(place, "all").startswith("with a first commit, ")
    monkeypatch.delenv("GIT_DIR")
    assert git(place, "log", "--format=%s") == "all\n"
    assert git(other, "ls-files") == ""
