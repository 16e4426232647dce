"""How every figure looks: its letters, and colours that colour-blind people tell apart, the same for the same thing."""

import math
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

from ticks.config import ConfigError, did_you_mean
from ticks.report.groups import shown

# the first six are Okabe and Ito's, without the yellow that is lost on white; black is DDP's and a baseline's alone
BLACK, GREY, DARK = "#000000", "#8c8c8c", "#555555"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#80ba5a")
FIXED = {
    "ddp": BLACK, "ticks": PALETTE[0], "local_sgd": PALETTE[1], "diloco": PALETTE[2],
    "layer_norm": PALETTE[0], "ln": PALETTE[0], "rms_norm": PALETTE[1], "rms": PALETTE[1],
    "none": GREY, "no_norm": GREY, "adamw": PALETTE[0], "muon": PALETTE[1],
}  # fmt: skip
RC = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.25, "lines.linewidth": 1.6, "lines.markersize": 3.5, "legend.frameon": False, "savefig.dpi": 150,
    "svg.hashsalt": "0", "svg.fonttype": "none",
}  # fmt: skip
MARKERS = "osD^vPX*"  # of lines, in their order: told apart in grey, too
BAND = 0.18  # how dark an interval is


def colours(values: Sequence[Any]) -> list[str]:
    """A colour for each: known names have their own, whole numbers one by their size, a known name with something
    beside it its own, brighter the larger the number there, and others one by their name."""
    names = [shown(value) for value in values]
    taken = {FIXED[part] for name in names for part in name.split(", ") if part in FIXED}
    chosen: dict[str, str] = {}
    for name in sorted(set(names)):
        if name in FIXED:
            chosen[name] = FIXED[name]
            continue
        if counted := re.fullmatch(r"(?:[^,]* )?([1-9]\d*)", name):
            chosen[name] = _of_size(int(counted[1]))
            continue
        if own := next((shade for shade in _of_parts(name) if shade not in chosen.values()), None):
            chosen[name] = own
            continue
        start = crc32(name.encode()) % len(PALETTE)
        free = [colour for colour in (*PALETTE[start:], *PALETTE[:start]) if colour not in taken]
        chosen[name] = free[0] if free else PALETTE[start]
        taken.add(chosen[name])
    return [chosen[name] for name in names]


def _of_parts(name: str) -> list[str]:
    """Of "ln, interval 16" layer norm's, brighter than that of "ln, interval 1", and others in its place where
    something else has that; nothing without a known name."""
    from matplotlib.colors import to_hex, to_rgb

    parts = name.split(", ")
    known = next((FIXED[part] for part in parts if part in FIXED), None)
    if known is None:
        return []
    number = next((int(found[1]) for part in parts if (found := re.search(r"(?:^| )([1-9]\d*)$", part))), 1)
    own = min(math.log2(number) / 9, 1.0) * 0.65
    others = sorted((0.0, 0.22, 0.44, 0.66), key=lambda white: -abs(white - own))  # the most different first
    red, green, blue = to_rgb(known)
    mixed = [(red + (1 - red) * w, green + (1 - green) * w, blue + (1 - blue) * w) for w in (own, *others)]
    return [to_hex(colour) for colour in mixed]


def _of_size(number: int) -> str:
    """From dark (1) to bright (512 and more), by its logarithm."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["viridis"](min(math.log2(number) / 9, 1.0) * 0.92))


def pyplot() -> Any:
    """matplotlib's, which opens no window. ConfigError without it."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError('figures need matplotlib: pip install -e ".[report]"') from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


@contextmanager
def picture(out: Path, *, rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 4.0)) -> Iterator[Any]:
    """Axes to draw on, an array of them where there are several, saved in `out` behind the block with the command that
    made them. `size` is the inches of one.

    ConfigError for a format that is none.
    """
    plt = pyplot()
    with plt.rc_context(RC):
        inches = size[0] * columns, size[1] * rows
        fig, axes = plt.subplots(rows, columns, figsize=inches, layout="constrained")
        try:
            if (suffix := out.suffix[1:]) not in (known := fig.canvas.get_supported_filetypes()):
                raise ConfigError(f"out={out}: '{suffix}' is no picture format{did_you_mean(suffix, known)}")
            yield axes
            out.parent.mkdir(parents=True, exist_ok=True)
            fig.savefig(out, metadata=metadata(suffix) or None)
        finally:
            plt.close(fig)


def command() -> str:
    """What was typed to make this."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":  # python -m PACKAGE
        spec = sys.modules["__main__"].__spec__
        return shlex.join(["python", "-m", spec.parent if spec and spec.parent else program.parent.name, *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])


def metadata(suffix: str) -> dict[str, str | None]:
    """What a file of this format can hold of the command that made it; no date, so that the same figure is the same."""
    known: dict[str, dict[str, str | None]] = {
        "png": {"Description": command()},
        "svg": {"Description": command(), "Date": None},
        "pdf": {"Subject": command(), "CreationDate": None},
    }
    return known.get(suffix, {})


def log_scale(axes: Any) -> None:
    """x on a log scale, its numbers written out."""
    from matplotlib.ticker import FuncFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    few = high / low < 30  # then those between powers of ten are needed
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: _between(value) if few else ""))


def _between(value: float) -> str:
    return f"{value:,.10g}" if f"{value:e}"[0] in "2356" else ""


def say_how_many(axes: Any, sizes: Sequence[int]) -> None:
    """Above the axes, small: of how many runs each thing in them is, and what its bar or band means."""
    few, many = min(sizes), max(sizes)
    text = "single runs: no intervals"
    if many > 1:
        text = f"means of {few if few == many else f'{few} to {many}'} runs, 95% intervals"
    axes.set_title(text, loc="left", fontsize=7, color=GREY)


def label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names of lines (x, y, name, colour) beside their right ends, moved up where they would meet; a legend of many."""
    if len(ends) > 12:
        for _, _, name, colour in ends:
            axes.plot([], [], color=colour, label=name)
        axes.legend(ncols=2, fontsize=7)
        return
    axes.figure.canvas.draw()
    line = 10 * axes.figure.dpi / 72
    heights = {i: axes.transData.transform((x, y))[1] for i, (x, y, _, _) in enumerate(ends)}
    free = -float("inf")
    for i in sorted(heights, key=lambda i: heights[i]):
        x, y, name, colour = ends[i]
        place = max(heights[i], free)
        free = place + line
        offset = (4, (place - heights[i]) * 72 / axes.figure.dpi)
        axes.annotate(
            name, (x, y), offset, textcoords="offset points", color=colour, fontsize=8, va="center",
            annotation_clip=False,
        )  # fmt: skip
