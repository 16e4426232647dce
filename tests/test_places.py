"""Where a run is started and where its files lie: paths that can be opened, or one line that says what to set."""

import re
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import run_command
from ticks.commands import main as ticks
from ticks.record import summary
from ticks.train import main as train

FAST = (
    "debug=fast", "trainer.max_steps=2", "trainer.limit_val_batches=1", "callbacks=none", "test=false",
    "task.sample_bytes=0",
)  # fmt: skip


def refused(directory: Path, *arguments: str, **options) -> str:
    """The one line that a command ends with, exit code 2."""
    code, output = run_command(directory, *FAST, *arguments, **options)
    assert code == 2, output
    assert len(output.splitlines()) == 1, output
    return output


@pytest.mark.parametrize(
    ("arguments", "key"),
    [((), "run_dir"), (("-m", "seed=0,1"), "hydra.sweep.dir"), (("hydra.run.dir=logs/x",), "hydra.run.dir")],
)
def test_where_nothing_can_be_written_a_run_says_what_to_set(tmp_path: Path, arguments: tuple, key: str) -> None:
    (tmp_path / "logs").write_text("")
    assert f"name a place with {key}=DIRECTORY" in refused(tmp_path, *arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "output-0.txt"}


def test_a_cache_that_cannot_be_written_leaves_no_run_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "TICKS_CACHE" in refused(tmp_path, env={"TICKS_CACHE": str(tmp_path / "file" / "cache")})
    assert not list(tmp_path.glob("logs/runs/*"))


def test_a_directory_that_was_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for program in (lambda: train(tmp_path), ticks):
        monkeypatch.setattr(sys, "argv", ["program", "report"])
        with pytest.raises(SystemExit, match="2"):
            program()
        assert (
            capsys.readouterr().err == "error: the directory you are in does not exist any more: cd to one that does\n"
        )


def test_each_job_of_a_multirun_has_a_directory_of_its_own(tmp_path: Path) -> None:
    assert "each job of a multirun has its own; set hydra.sweep.dir" in refused(tmp_path, "-m", "run_dir=x")
    assert not (tmp_path / "logs").exists()


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for step in (1, 2):
        summary.write(tmp_path, {"strategy": "ddp", "steps": step, "measure": "bits_per_byte"})
    rows = "step,bytes_sent,val/bits_per_byte\n1,10,3\n2,20,2\n"
    (tmp_path / "metrics.csv").write_text(rows)
    code, output = run_command(tmp_path, "report", ".", "out=file/x.png", program="ticks")
    assert code == 2
    assert output.splitlines()[-1].startswith("error: out=file/x.png cannot be written: ")


@pytest.mark.parametrize("arguments", [("hydra.run.dir=foo",), ("-m", "hydra.sweep.dir=foo")])
def test_paths_shown_and_recorded_can_be_opened_though_hydra_changed_the_directory(
    tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output = run_command(tmp_path, *FAST, "hydra.job.chdir=true", *arguments, fresh="-m" in arguments)
    assert code == 0, output
    monkeypatch.chdir(tmp_path)
    shown = re.findall(r"^(?:run directory|run|checkpoint) +(.+)$", output, re.MULTILINE)
    assert len(shown) == 3
    assert all(Path(path).exists() for path in shown)
    about = summary.read(Path(shown[0]))
    assert Path(about["run_dir"]).samefile(shown[0])
    assert Path(about["checkpoint"]).is_file()
    assert Path(OmegaConf.load(Path(shown[0]) / "config.yaml").run_dir).samefile(shown[0])


def test_a_run_on_a_folder_in_a_chosen_directory_with_a_prompt_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for name, encoding in {"a.txt": "utf-8", "b.txt": "latin-1"}.items():
        text = "\n\n".join(f"{i} Zwölf Boxkämpfer jagen Viktor quer über den Deich. {i}" for i in range(400))
        (tmp_path / "books" / name).write_bytes(text.encode(encoding))
    (tmp_path / "books" / "c.bin").write_bytes(b"\0")
    arguments = (
        "data=text",
        "data.path=books",
        "run_dir=my/run",
        'task.sample_prompt="Es war "',
        "task.sample_bytes=5",
    )
    code, output = run_command(tmp_path, *FAST, *arguments)
    assert code == 0, output
    assert "data.path='books': 2 text file(s), 0.0 MB; 1 that are no text were left out: books/c.bin\n" in output
    assert "data.path='books': books/b.txt is not UTF-8 but looks like CP1252 or CP1250; its bytes" in output
    assert re.search(r"^│ Es war ", output, re.MULTILINE)
    assert "run         my/run\ncheckpoint  my/run/checkpoints/final.ckpt\n" in output
    assert not (tmp_path / "logs").exists()
    code, output = run_command(tmp_path, "generate", "run=my/run", "bytes=2", program="ticks")
    assert (code, output[:7]) == (0, "Es war ")
    config = OmegaConf.load(tmp_path / "my/run/config.yaml")
    config.sample_bytes = config.task.pop("sample_bytes")  # as a run of before it was the task's
    del config.task["sample_prompt"]
    OmegaConf.save(config, tmp_path / "my/run/config.yaml")
    code, output = run_command(tmp_path, "resume=my/run", "trainer.max_steps=3")
    assert code == 0, output
    assert re.search(r"^│ The ", output, re.MULTILINE)
