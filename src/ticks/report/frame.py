"""Runs as a pandas frame, a row each, in a file that can be read again: figures are drawn from it without the runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ticks.config import ConfigError
from ticks.record import summary
from ticks.report.figures import TRAINING
from ticks.report.groups import differing, setting, shown
from ticks.report.runs import Run

FORMATS = (".csv", ".parquet")
LEFT_OUT = (
    "versions",
    "run_dir",
    "checkpoint",
    "norm",
    "adapter",
    "interval",
)  # said elsewhere, or of one machine alone
ALWAYS = (  # though they are the same in all: what tells these runs from another file's
    "task", "data", "model", "optimizer", "schedule", "strategy", "strategy.clock.interval", "trainer.devices",
    "trainer.max_steps",
)  # fmt: skip


def pandas() -> Any:
    """ConfigError without it."""
    try:
        import pandas
    except ImportError:
        raise ConfigError('tables of runs in a file need pandas: pip install -e ".[report]"') from None
    return pandas


def frame(runs: Sequence[Run], keys: Sequence[str] = ()) -> Any:
    """A row per run: its directory's name, the settings that differ (or `keys`), its seed, those of ALWAYS and what its
    summary says."""
    always = [key for key in ALWAYS if any(key in run.settings for run in runs)]
    told = dict.fromkeys([*(keys or differing(runs)), "seed", *always])
    names = dict.fromkeys(name for run in runs for name in run.summary if name not in LEFT_OUT and name not in told)
    rows = [
        {"run": called} | {key: setting(run, key) for key in told} | {n: run.summary.get(n) for n in names}
        for run, called in zip(runs, names_of(runs), strict=True)
    ]
    return pandas().DataFrame(rows)


def names_of(runs: Sequence[Run]) -> list[str]:
    """Each run's directory by its name, with a number where several have it."""
    names = [run.directory.name for run in runs]
    return [name if names.count(name) == 1 else f"{name}#{i}" for i, name in enumerate(names, start=1)]


def curves_frame(runs: Sequence[Run]) -> Any:
    """A row per evaluation during training, of every run: `run`, the columns of TRAINING, and the measures."""
    rows = []
    for run, called in zip(runs, names_of(runs), strict=True):
        for row in run.rows:
            measured = {key: value for key, value in row.items() if key.startswith("val/") and value}
            if measured:
                rows.append({"run": called, **{key: row.get(key) for key in TRAINING}, **measured})
    return pandas().DataFrame(rows)


def write(runs: Sequence[Run], out: Path, keys: Sequence[str] = ()) -> list[Path]:
    """The runs in `out` (csv or parquet), and their evaluations beside it in NAME.curves.SUFFIX, if there are any."""
    table, curves = frame(runs, keys), curves_frame(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    files = [(table, out)]
    curves_file(out).unlink(missing_ok=True)
    if len(curves):
        files.append((curves, curves_file(out)))
    for content, file in files:
        for name in content.select_dtypes("object").columns:
            if len({type(value) for value in content[name] if value is not None and value == value}) > 1:
                content[name] = content[name].map(lambda v: None if v is None or v != v else shown(v))
        if file.suffix == ".csv":
            content.to_csv(file, index=False)
            continue
        try:
            content.to_parquet(file, index=False)
        except ImportError:
            raise ConfigError(f'out={out}: parquet needs pyarrow: pip install -e ".[report]"; csv does not') from None
    return [file for _, file in files]


def curves_file(file: Path) -> Path:
    return file.with_name(f"{file.stem}.curves{file.suffix}")


def read(file: Path) -> list[Run]:
    """The runs of a file that `write` has written. ConfigError for another one."""
    pd = pandas()
    try:
        table = _read(pd, file)
        curves = _read(pd, curves_file(file)) if curves_file(file).is_file() else pd.DataFrame({"run": []})
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if missing := [name for name in ("run", "status", "strategy", "steps") if name not in table]:
        raise ConfigError(
            f"{file} holds no runs: it has no column {missing[0]}; ticks report RUNS out={file.name} writes one"
        )
    by_run = {name: rows.drop(columns="run") for name, rows in curves.groupby("run")}
    runs = []
    for row in table.to_dict("records"):
        values = {name: _plain(value) for name, value in row.items()}
        about = {
            name: value
            for name, value in values.items()
            if name in summary.KEYS or name.startswith(("val_", "test_", "gap_"))
        }
        settings = {name: value for name, value in values.items() if name not in about and name != "run"}
        settings |= {name: values[name] for name in ("strategy", "seed") if name in values}
        rows = by_run.get(row["run"], pd.DataFrame())
        record = [{key: str(v) for key, v in of.items() if not pd.isna(v)} for of in rows.to_dict("records")]
        runs.append(Run(file.parent / str(row["run"]), dict.fromkeys(summary.KEYS) | about, record, settings))
    return runs


def _read(pd: Any, file: Path) -> Any:
    if file.suffix == ".parquet":
        return pd.read_parquet(file)
    return pd.read_csv(file, keep_default_na=False, na_values=[""], dtype={"run": str})  # a norm may be called none


def _plain(value: Any) -> Any:
    """As it was: nothing for nan, whole numbers whole."""
    if value != value or value is None:
        return None
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
