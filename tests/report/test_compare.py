"""Runs side by side: the table, the figure, and one clear message where there is nothing to show."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_command
from ticks.config import ConfigError
from ticks.record import summary
from ticks.record.metrics import MetricsFile
from ticks.report.compare import figure, load_runs, show_runs

FINISHED = {
    "status": "finished", "strategy": "ticks", "interval": 8, "sync": "gradients", "wire": "fp32", "norm": "rms_norm",
    "adapter": "none", "world_size": 4, "steps": 640, "val_bits_per_byte": 2.345, "bytes_sent_per_worker": 12_300_000,
    "steps_per_second": 7.5,
}  # fmt: skip


def run(directory: Path, bits: list[float] | None = None, *, sent: int = 10**6, **about: Any) -> Path:
    directory.mkdir(parents=True)
    summary.write(directory, FINISHED | about)
    file = MetricsFile(directory / "metrics.csv")
    for i, value in enumerate(bits or []):
        file.append({"step": 10 * i, "bytes_sent": sent * i, "val/bits_per_byte": value})
        file.append({"step": 10 * i + 5, "bytes_sent": sent * i, "train/loss": 1.0})
    return directory


def drawn(runs: list, tmp_path: Path) -> Any:
    """The figure object, as `figure` draws it before it is closed."""
    from matplotlib import pyplot as plt

    kept: list[Any] = []
    original, plt.close = plt.close, kept.append
    try:
        figure(runs, tmp_path / "figure.png")
    finally:
        plt.close = original
    plt.close(kept[0])
    return kept[0]


def test_a_figure_is_a_picture_with_something_on_it(tmp_path: Path) -> None:
    from matplotlib import image

    runs = [run(tmp_path / "a", [8.0, 4.0, 3.0]), run(tmp_path / "b", [8.0, 3.5, 2.5], strategy="ddp", sent=10**8)]
    out = tmp_path / "new" / "folder" / "figure.png"
    figure(load_runs(runs), out)
    pixels = image.imread(out)[..., :3].reshape(-1, 3)
    assert len(pixels) > 100_000
    coloured = pixels.max(axis=1) - pixels.min(axis=1) > 0.3
    assert coloured.sum() > 500  # lines, not only axes


def test_a_figure_shows_every_run_against_mb_sent_and_against_steps(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", [8.0, 4.0, 3.0]), run(tmp_path / "b", [8.0, 3.5, 2.5], strategy="ddp", sent=10**8)]
    left, right = drawn(load_runs(runs), tmp_path).axes
    assert [line.get_xdata().tolist() for line in left.lines] == [[1.0, 2.0], [100.0, 200.0]]
    assert [line.get_xdata().tolist() for line in right.lines] == [[10, 20], [10, 20]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[4.0, 3.0], [3.5, 2.5]]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["gradients, interval 8", "DDP"]
    assert left.get_xscale() == "log"


def test_runs_are_found_below_a_multiruns_directory(tmp_path: Path) -> None:
    for number in (0, 1, 2):
        run(tmp_path / "multirun" / str(number))
    assert [found.directory.name for found in load_runs([tmp_path / "multirun"])] == ["0", "1", "2"]


def test_the_table_has_a_line_for_every_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run(tmp_path / "good")
    run(
        tmp_path / "broken",
        norm="none",
        adapter="rms_norm",
        world_size=2,
        strategy="ddp",
        status="failed",
        val_bits_per_byte=None,
        bytes_sent_per_worker=None,
        steps_per_second=None,
    )
    show_runs(load_runs([tmp_path / "good", tmp_path / "broken"]))
    good, broken = (line.split() for line in capsys.readouterr().out.splitlines() if "rms_norm" in line)
    assert good == [
        "good",
        "gradients,",
        "interval",
        "8",
        "rms_norm",
        "none",
        "4",
        "640",
        "2.345",
        "12.3",
        "MB",
        "7.50",
    ]
    assert "(failed)" in broken


def three_runs(folder: Path) -> list[Path]:
    """Runs with names, strategies and norms as long as real ones."""
    return [
        run(folder / "2026-11-25_22-16-30_intervals"),
        run(folder / "2026-11-25_22-16-31_intervals", strategy="diloco", sync="diloco", norm="layer_norm", wire="int4",
            clock="500, then as the learning rate decays"),
        run(folder / "2026-11-25_22-16-32_intervals", strategy="ddp", status="failed", val_bits_per_byte=None,
            bytes_sent_per_worker=123_456_789_012),
    ]  # fmt: skip


def test_at_80_columns_nothing_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    show_runs(load_runs(three_runs(Path("logs/runs"))))
    out = capsys.readouterr().out
    assert "…" not in out
    lines = [line.split() for line in out.splitlines()]
    assert ["2", "layer_norm", "640", "2.345", "12.3", "MB", "7.50"] in lines
    assert ["3", "rms_norm", "640", "(failed)", "-", "123,456.8", "MB", "7.50"] in lines
    names = [line for line in out.splitlines() if "logs/runs" in line]
    assert names[1] == (
        "  2  logs/runs/2026-11-25_22-16-31_intervals: diloco, interval 500, then as the learning rate decays, int4"
    )
    assert max(len(line) for line in out.splitlines() if line not in names) <= 80


def test_what_is_the_same_for_all_runs_stands_once_above_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    show_runs(load_runs([run(tmp_path / "a"), run(tmp_path / "b", norm="layer_norm")]))
    out = capsys.readouterr().out
    assert out.startswith("all runs: strategy gradients, interval 8; adapter none; workers 4; steps 640\n")
    assert ["b", "layer_norm", "2.345", "12.3", "MB", "7.50"] in [line.split() for line in out.splitlines()]
    assert out.count("gradients") == out.count("none") == 1


def test_a_run_that_failed_before_its_first_row_is_listed_too(tmp_path: Path) -> None:
    run(tmp_path / "a", status="failed")
    assert not (tmp_path / "a" / "metrics.csv").exists()
    assert load_runs([tmp_path / "a"])[0].rows == []


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run in '.*nowhere': no summary\.json there or below it"):
        load_runs([tmp_path / "nowhere"])


def test_what_is_no_run_is_left_out_with_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = run(tmp_path / "good", [8.0, 4.0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("a file")
    for name, content in (
        ("cut", '{"status": '), ("foreign", '{"status": "ok", "version": 3}'), ("a-list", "[1]"), ("latin", "\xff"),
        ("other", '{"status": "finished", "strategy": "x", "steps": "many"}'),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_bytes(content.encode("latin-1"))
    runs = load_runs(sorted(tmp_path.iterdir()))
    assert [found.directory for found in runs] == [good]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: left out: ")
    for name in ("empty", "notes.txt", "cut", "foreign", "a-list", "latin", "other"):
        assert name in warning


def test_a_run_whose_record_is_damaged_is_listed_and_said_not_to_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directories = [run(tmp_path / name, [8.0, 4.0, 3.0]) for name in ("whole", "binary", "without", "cut")]
    (directories[1] / "metrics.csv").write_bytes(b"\xff\x00,,\n\xff")
    (directories[2] / "metrics.csv").unlink()
    cut = directories[3] / "metrics.csv"
    cut.write_text("\n".join(cut.read_text().splitlines()[:-1])[:-1])  # the last evaluation, without its last digit
    runs = load_runs(directories)
    assert [len(found.rows) for found in runs] == [6, 0, 0, 4]
    assert len(drawn(runs, tmp_path).axes[0].lines) == 1
    shown = capsys.readouterr().err.splitlines()
    assert ["metrics.csv cannot be read" in line for line in shown] == [True, False]
    assert shown[1].endswith(f"not drawn: {', '.join(map(str, directories[1:]))}")


@pytest.mark.parametrize("left", [{"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, {"PMI_SIZE": "4"}])
def test_what_needs_no_workers_asks_for_no_launcher(left: dict[str, str], tmp_path: Path) -> None:
    code, output = run_command(tmp_path, "report", "no/run", program="ticks", env=left)
    assert code == 2
    assert output.startswith("error: no run in 'no/run'"), output


def test_runs_are_compared_without_torch() -> None:
    code = "import sys, ticks.commands, ticks.report.compare\nprint({'torch', 'lightning', 'wandb'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_no_directory_at_all_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match="give run directories: ticks report"):
        load_runs([])


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    (run(tmp_path / "a") / "summary.json").write_text('{"status": ')
    with pytest.raises(ConfigError, match=r"a/summary\.json cannot be read"):
        load_runs([tmp_path / "a"])


@pytest.mark.parametrize("bits", [[], [8.0], [8.0, 4.0]])
def test_runs_without_two_evaluations_in_training_draw_nothing(tmp_path: Path, bits: list[float]) -> None:
    runs = load_runs([run(tmp_path / "a", bits)])
    with pytest.raises(ConfigError, match="nothing to draw: no run has two evaluations during training"):
        figure(runs, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


@pytest.mark.parametrize("name", ["figure.pgn", "figure"])
def test_a_picture_format_nobody_knows_is_refused(tmp_path: Path, name: str) -> None:
    runs = load_runs([run(tmp_path / "a", [8.0, 4.0, 3.0])])
    with pytest.raises(ConfigError, match=rf"out=.*{name}: '.*' is no picture format.*valid: .*png"):
        figure(runs, tmp_path / name)


def test_a_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r'figures need matplotlib: pip install -e "\.\[figures\]"'):
        figure(load_runs([run(tmp_path / "a", [8.0, 4.0, 3.0])]), tmp_path / "figure.png")


def test_curves_are_told_apart_by_what_differs() -> None:
    from ticks.report.compare import Run, distinct_labels

    about = {"strategy": "ticks", "sync": "gradients", "interval": 8, "adapter": "none", "world_size": 4, "seed": 0}
    runs = [Run(Path(name), about | {"norm": name}, []) for name in ("layer_norm", "rms_norm")]
    assert distinct_labels(runs) == ["gradients, interval 8, norm layer_norm", "gradients, interval 8, norm rms_norm"]
    assert distinct_labels(runs[:1]) == ["gradients, interval 8"]
