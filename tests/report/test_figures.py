"""Figures of fixed runs: what is drawn where, every label, and the picture itself beside a stored one."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib import image
from matplotlib import pyplot as plt
from matplotlib.testing.compare import compare_images

from tests.report.made import grid, run
from ticks.config import ConfigError
from ticks.record.metrics import MetricsFile
from ticks.report.figures import _differences, curve, draw, pareto
from ticks.report.groups import group
from ticks.report.runs import load_runs
from ticks.report.style import colours, command

MEASURE = "val_bits_per_byte"
STORED = Path(__file__).parent / "pictures"
KINDS: dict[str, list[str]] = {
    "curves": [],
    "curves_over_steps": ["step"],
    "lines": ["strategy.clock.interval"],
    "names": ["model"],
    "frontier": ["bytes_sent_per_worker"],
    "heat_map": ["strategy.clock.interval", "model"],
}


def drawn(folder: Path, out: Path, x: Sequence[str] = (), measure: str = MEASURE) -> Any:
    """The figure object, kept from being closed."""
    kept: list[Any] = []
    original, plt.close = plt.close, kept.append
    try:
        draw(group(load_runs([folder])), measure, out, x=x)
    finally:
        plt.close = original
    plt.close(kept[0])
    return kept[0]


def texts(figure: Any) -> set[str]:
    return {text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")) if text.get_text()}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_figure_looks_as_it_did(kind: str, tmp_path: Path) -> None:
    """`python -m tests.report.test_figures` draws the stored ones anew: open them, and look."""
    draw(group(load_runs([grid(tmp_path / "runs")])), MEASURE, out := tmp_path / f"{kind}.png", x=KINDS[kind])
    assert compare_images(str(STORED / f"{kind}.png"), str(out), tol=2) is None


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        (
            "curves",
            {"MB sent per worker (log scale)", "optimizer steps", "validation bits per byte", "ln, interval 16"},
        ),
        ("curves_over_steps", {"optimizer steps", "validation bits per byte", "ln, interval 16", "rms, interval 1"}),
        ("lines", {"interval", "validation bits per byte", "ln", "rms", "1", "16"}),
        ("names", {"model", "ln", "rms", "interval 1", "interval 16"}),
        ("frontier", {"MB sent per worker (log scale)", "ln, interval 1", "rms, interval 1", "interval 16"}),
        ("heat_map", {"interval", "model", "ln", "rms", "1", "16", "2.010\n± 0.025", "2.111\n± 0.025"}),
    ],
)
def test_every_label_is_there(kind: str, labels: set[str], tmp_path: Path) -> None:
    figure = drawn(grid(tmp_path / "runs"), tmp_path / "figure.svg", KINDS[kind])
    assert labels <= texts(figure), texts(figure)
    written = (tmp_path / "figure.svg").read_text()
    for label in labels:
        for line in label.split("\n"):
            assert f">{line}<" in written, line


def test_beside_the_lines_are_the_differences_by_seed(tmp_path: Path) -> None:
    """Seeds differ by more than intervals do: the difference of a seed's two runs is known far better than either."""
    groups, out = group(load_runs([grid(tmp_path / "runs")])), tmp_path / "differences.png"
    interval, against = ["strategy.clock.interval"], "strategy.clock.interval=1"
    draw(groups, MEASURE, out, x=interval, against=against)
    assert compare_images(str(STORED / "differences.png"), str(out), tol=2) is None
    found = {one.name: _differences(groups, MEASURE, against)[id(one)] for one in groups}
    assert found["model=ln, strategy.clock.interval=1"] == ((0.0, 0.0, 0.0), 0)
    (mean, _, high), n = found["model=ln, strategy.clock.interval=16"]
    assert (mean, n) == (pytest.approx(0.1 + 0.002 / 3, abs=1e-6), 3)
    assert high - mean < 0.2 * 0.025  # of the mean's own interval
    alone = [one for one in groups if one.name != "model=rms, strategy.clock.interval=1"]
    kept = _differences(alone, MEASURE, against)
    assert [one.name for one in alone if id(one) not in kept] == ["model=rms, strategy.clock.interval=16"], (
        "what has nothing to be compared with is no 0"
    )
    with pytest.raises(ConfigError, match="against=model=x: no group has it; model is ln, rms"):
        draw(groups, MEASURE, out, x=interval, against="model=x")


def test_numbers_with_a_nought_among_them_that_would_lie_on_each_other_stand_side_by_side(tmp_path: Path) -> None:
    for weight in (0.1, 0.0, 0.001):
        typed = {"task.regulariser.weight": weight}
        config = {"task": {"regulariser": {"weight": weight}}}
        run(tmp_path / "runs" / str(weight), typed=typed, config=config, choices={}, val_bits_per_byte=2 + weight)
    figure = drawn(tmp_path / "runs", tmp_path / "a.svg", ["task.regulariser.weight"])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0.001", "0.1"]
    assert list(axes.get_xticks()) == [0, 1, 2]
    assert axes.get_xlabel() == "weight (not to scale)"
    assert next(list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 3) == [2.0, 2.001, 2.1]


def test_curves_are_means_over_the_seeds_with_their_interval(tmp_path: Path) -> None:
    found = group(load_runs([grid(tmp_path)]))[1]
    points = curve(found, MEASURE, "bytes_sent")
    assert points.x == pytest.approx([6.25, 12.5, 18.75])
    assert points.y == pytest.approx([3.11, 2.31, 2.11], abs=1e-3)
    assert [high - y for high, y in zip(points.high, points.y, strict=True)] == pytest.approx([0.0250] * 3, abs=1e-4)
    assert curve(found, MEASURE, "step").x == [10, 20, 30]


def with_a_timeline(folder: Path, *marks: tuple[int, str, str]) -> Path:
    """A run of 60 steps whose timeline did this."""
    directory = run(folder, [8.0, 4.0, 3.5, 3.2, 1.0, 0.7, 0.5], seed=len(folder.name))
    file = MetricsFile(directory / "metrics.csv")
    rows = file.rows()
    file.path.unlink()
    file = MetricsFile(file.path)
    for row in rows:
        file.append({key: value for key, value in row.items() if value})
        for step, name, said in marks:
            if row["step"] == str(step) and row.get("val/bits_per_byte"):
                file.append({"step": step, "bytes_sent": row["bytes_sent"], f"timeline/{name}": said})
    return directory


DID = ((0, "phase", "learn"), (10, "gate", "ramps"), (20, "gate", "holds"), (30, "phase", "tune"))


def test_what_a_timeline_did_stands_in_the_curves_and_phases_are_apart(tmp_path: Path) -> None:
    saves = tuple((10 * i, "save", "1") for i in range(1, 6))
    for name in ("a", "bb"):
        with_a_timeline(tmp_path / "runs" / name, *DID, *saves)
    figure = drawn(tmp_path / "runs", tmp_path / "figure.png", ["step"])
    assert {"learn", "tune", "gate ramps", "gate holds", "save"} <= texts(figure)
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.texts]
    assert labels.count("save") == 1, "what comes often has its name once"
    curves = [list(line.get_xdata()) for line in axes.lines if line.get_marker() != "None"]
    assert curves == [[10, 20, 30], [40, 50, 60]], "no line from one task to another"
    with_a_timeline(tmp_path / "runs" / "ccc", *DID[:2])
    figure = drawn(tmp_path / "runs", tmp_path / "figure.png", ["step"])
    assert not {"learn", "gate ramps"} & texts(figure), "not where runs of one figure differ in it"


def test_a_seed_without_a_step_takes_that_step_out(tmp_path: Path) -> None:
    run(tmp_path / "a", [8.0, 4.0, 3.0, 2.0]), run(tmp_path / "b", [8.0, 5.0, 4.0], seed=1)
    (found,) = group(load_runs([tmp_path]))
    assert curve(found, MEASURE, "step").y == pytest.approx([4.5, 3.5])


@pytest.mark.parametrize(
    ("suffix", "marks"), [("png", b"Description\0"), ("svg", b"<dc:description>"), ("pdf", b"/Subject")]
)
def test_a_figure_says_which_command_made_it(
    suffix: str, marks: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/ticks", "report", "my runs", "x=step"])
    out = tmp_path / "new" / f"figure.{suffix}"
    draw(group(load_runs([grid(tmp_path / "runs")])), MEASURE, out)
    content = out.read_bytes()
    assert marks in content
    assert b"ticks report 'my runs' x=step" in content
    assert b"somewhere" not in content
    draw(group(load_runs([tmp_path / "runs"])), MEASURE, out)
    assert out.read_bytes() == content  # no date, no order of its own


def test_a_program_of_a_package_is_named_as_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/network/__main__.py", "--report"])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(parent="benchmarks.network")))
    assert command() == "python -m benchmarks.network --report"


def test_a_figure_says_of_how_many_runs_it_is(tmp_path: Path) -> None:
    several, one = grid(tmp_path / "several"), grid(tmp_path / "one", seeds=[0])
    for x in ([], ["model"], ["strategy.clock.interval", "model"]):
        assert "means of 3 runs, 95% intervals" in texts(drawn(several, tmp_path / "figure.png", x))
        assert "single runs: no intervals" in texts(drawn(one, tmp_path / "figure.png", x))
    run(tmp_path / "one" / "more", [8.0, 4.0, 3.0], typed={"model": "ln", "strategy.clock.interval": 1, "seed": 7},
        config={"model": {"norm": {"_target_": "ln"}}, "strategy": {"clock": {"interval": 1}}, "data": {"seed": 7}},
        choices={"model": "ln", "strategy": "ticks", "task": "language_modeling", "model/norm": "ln"},
        seed=7, interval=1, norm="ln")  # fmt: skip
    assert "means of 1 to 2 runs, 95% intervals" in texts(drawn(tmp_path / "one", tmp_path / "figure.png", ["model"]))


def test_a_figure_is_a_picture_with_something_on_it(tmp_path: Path) -> None:
    draw(group(load_runs([grid(tmp_path / "runs")])), MEASURE, tmp_path / "figure.png")
    pixels = image.imread(tmp_path / "figure.png")[..., :3].reshape(-1, 3)
    assert len(pixels) > 100_000
    coloured = pixels.max(axis=1) - pixels.min(axis=1) > 0.3
    assert coloured.sum() > 500  # lines, not only axes


def test_the_same_thing_has_the_same_colour_wherever_it_is() -> None:
    assert colours(["ln", "x"])[0] == colours(["a", "b", "ln"])[2] == colours(["ln"])[0]
    assert colours([8, 64])[1] == colours([64])[0] == colours(["interval 64"])[0]
    many = [f"norm {i}" for i in "abcdefgh"]
    assert len(set(colours(many))) == len(many)
    assert len(set(colours([1, 2, 4, 8, 16, 32, 64]))) == 7
    curves = [f"{norm}, interval {n}" for norm in ("ln", "rms") for n in (1, 16, 64)]
    assert colours(curves)[::3] == colours(["ln", "rms"]), "the interval makes it brighter"
    assert colours(["rms, interval 16", "x"])[0] == colours(curves)[4]
    assert len(set(colours(curves))) == 6
    two = [f"ln, interval {n}, lr {lr}" for n in (1, 4, 8) for lr in ("0.003", "0.012")]
    assert len(set(colours([*two, "rms, interval 8"]))) == 7


def test_runs_that_came_to_nothing_are_in_the_heat_map(tmp_path: Path) -> None:
    grid(tmp_path)
    for seed in range(3):
        about = {"status": "diverged", "val_bits_per_byte": None, "seed": seed, "interval": 64}
        run(tmp_path / f"ln_64_{seed}", typed={"model": "ln"}, choices={"model": "ln", "strategy": "ticks"},
            config={"model": {"norm": {"_target_": "ln"}}, "strategy": {"clock": {"interval": 64}}},
            **about)  # fmt: skip
    figure = drawn(tmp_path, tmp_path / "figure.png", ["strategy.clock.interval", "model"])
    assert {"3 diverged", "-"} <= texts(figure)


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_what_no_other_beats_is_on_the_frontier(better: str) -> None:
    sign = 1 if better == "lower" else -1
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 6.0), (2.0, 2.0), (4.0, 1.0), (5.0, 0.5)]
    found = pareto([(x, sign * y) for x, y in points], better)
    assert [(x, sign * y) for x, y in found] == [(1.0, 5.0), (2.0, 2.0), (3.0, 1.0), (5.0, 0.5)]


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    groups = group(load_runs([grid(tmp_path / "runs")]))
    for x, message in (
        (["mdoel"], "no run has 'mdoel'; did you mean 'model'"),
        (["a", "b", "c"], "no run has 'a'"),
        (["model", "strategy", "seed"], "x=model,strategy,seed: one key, or two for a heat map"),
        (["model", "strategy"], "are one cell; choose runs that differ in model and strategy alone"),
    ):
        with pytest.raises(ConfigError, match=message):
            draw(groups, MEASURE, tmp_path / "figure.png", x=x)
    failed = group(load_runs([run(tmp_path / "a", status="failed", val_bits_per_byte=None)]))
    for x in ([], ["norm"], ["bytes_sent_per_worker"], ["norm", "adapter"]):
        with pytest.raises(ConfigError, match="nothing to draw: no run has"):
            draw(failed, MEASURE, tmp_path / "figure.png", x=x)
    assert not (tmp_path / "figure.png").exists()


@pytest.mark.parametrize("bits", [[], [8.0], [8.0, 4.0]])
def test_runs_without_two_evaluations_in_training_have_no_curve(tmp_path: Path, bits: list[float]) -> None:
    with pytest.raises(ConfigError, match="nothing to draw: no run has two evaluations during training"):
        draw(group(load_runs([run(tmp_path / "a", bits)])), MEASURE, tmp_path / "figure.png")


def test_a_run_whose_record_is_damaged_is_said_not_to_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, name in enumerate(("whole", "binary", "without", "cut")):
        run(tmp_path / name, [8.0, 4.0, 3.0], interval=2**i)
    (tmp_path / "binary" / "metrics.csv").write_bytes(b"\xff\x00,,\n\xff")
    (tmp_path / "without" / "metrics.csv").unlink()
    cut = tmp_path / "cut" / "metrics.csv"
    cut.write_text("\n".join(cut.read_text().splitlines()[:-1])[:-1])  # the last evaluation, without its last digit
    figure = drawn(tmp_path, tmp_path / "figure.png")
    assert len(figure.axes[0].lines) == 1
    shown = capsys.readouterr().err.splitlines()
    assert ["metrics.csv cannot be read" in line for line in shown] == [True, False]
    intervals = "; ".join(f"strategy.clock.interval={i}" for i in (2, 4, 8))
    assert shown[1] == f"warning: fewer than two evaluations, not drawn: {intervals}"


@pytest.mark.parametrize("name", ["figure.pgn", "figure"])
def test_a_picture_format_nobody_knows_is_refused(tmp_path: Path, name: str) -> None:
    groups = group(load_runs([run(tmp_path / "a", [8.0, 4.0, 3.0])]))
    with pytest.raises(ConfigError, match=rf"out=.*{name}: '.*' is no picture format.*valid: .*png"):
        draw(groups, MEASURE, tmp_path / name)


def test_a_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r'figures need matplotlib: pip install -e "\.\[report\]"'):
        draw(group(load_runs([run(tmp_path / "a", [8.0, 4.0, 3.0])])), MEASURE, tmp_path / "figure.png")


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        groups = group(load_runs([grid(Path(folder))]))
        for kind, x in KINDS.items():
            draw(groups, MEASURE, STORED / f"{kind}.png", x=x)
        key = "strategy.clock.interval"
        draw(groups, MEASURE, STORED / "differences.png", x=[key], against=f"{key}=1")
