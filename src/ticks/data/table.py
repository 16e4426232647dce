"""A table with a column of texts and one of labels: csv, tsv, json lines or parquet."""

import csv
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ticks.arguments import ArgumentError
from ticks.data.cache import cache_root
from ticks.data.corpus import split_of
from ticks.data.labelled import LabelledTexts
from ticks.data.labelled_corpus import Row

FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
SEPARATORS = {".csv": ",", ".tsv": "\t"}
MOST_CLASSES = 1000
FORMAT = 2  # raise it when other rows are made of the same file: tables are then read again
NOT_A_NUMBER = ("nan", "NaN")  # as a table has it that was written from one with gaps


class Table(LabelledTexts):
    """The rows of the file `path`: the column `text` is told apart by the column `label`. Rows without either are left
    out.

    90% of the rows are learnt from, 5% are for validation and 5% to test, by a hash of the text; `val_path` and
    `test_path` are files with the same columns that are taken in their place. Takes what `LabelledTexts` takes. Reading
    needs the library datasets, from the extra `hf`, and no network. ArgumentError for a file or a column that cannot be
    used.
    """

    samples_are = "rows"

    def __init__(
        self,
        *,
        path: str | None,
        text: str | None,
        label: str | None,
        val_path: str | None = None,
        test_path: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        if not path:
            raise ArgumentError("path", path, f"is not set: give the file to read, one of {', '.join(FORMATS)}")
        given = {"path": path, "val_path": val_path, "test_path": test_path}
        self.files = {name: Path(os.path.expanduser(file)) for name, file in given.items() if file}
        self.text = text
        self.label = label
        for name, file in self.files.items():
            if file.suffix.lower() not in FORMATS:
                raise ArgumentError(name, str(file), f"must end in one of {', '.join(FORMATS)}")
            if not file.is_file():
                where = "" if file.is_absolute() else f" in {Path.cwd()}"
                raise ArgumentError(name, str(file), f"is no file{where}")
            if not file.stat().st_size:
                raise ArgumentError(name, str(file), "is empty")

    def identity(self) -> str:
        stats = [(name, str(file.resolve()), file.stat()) for name, file in self.files.items()]
        return (
            f"table:{FORMAT}:{self.text}:{self.label}:{[(*of, stat.st_size, stat.st_mtime_ns) for *of, stat in stats]}"
        )

    def rows(self) -> Iterator[Row]:
        given = {name.partition("_")[0] for name in self.files if name != "path"}
        n, labels = 0, set()
        for name, file in self.files.items():
            for text, label in self._columns(name, file):
                if not text.strip() or not label.strip():
                    yield Row(None, b"", "")
                    continue
                n += 1
                labels.add(label)
                content = text.encode("utf-8", errors="replace")
                split = name.partition("_")[0] if name != "path" else split_of(content)
                yield Row("train" if name == "path" and split in given else split, content, label)
        path = str(self.files["path"])
        if not n:
            raise ArgumentError("path", path, f"has no row with both {self.text!r} and {self.label!r}")
        if len(labels) == 1:
            raise ArgumentError("label", self.label, f"is {labels.pop()!r} in every row: nothing is to be told apart")
        if len(labels) > min(MOST_CLASSES, max(2, n // 2)):
            raise ArgumentError(
                "label", self.label, f"has {len(labels):,} different values in {n:,} rows, which are no classes"
            )

    def _columns(self, name: str, file: Path) -> Iterator[tuple[str, str]]:
        """Text and label of each row, empty where there is none."""
        datasets = _library()
        kind, suffix = FORMATS[file.suffix.lower()], file.suffix.lower()
        options: dict[str, Any] = {}
        if kind == "csv":  # as it stands there: no text that says NA or 007 becomes something else
            columns = self._checked(file, _header(name, file, SEPARATORS[suffix]))
            as_text = dict.fromkeys(columns, str)
            options = {"sep": SEPARATORS[suffix], "usecols": columns, "converters": as_text, "na_filter": False}
        root = cache_root()
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="table-", dir=root) as scratch:
            try:
                table = datasets.load_dataset(
                    kind, data_files=str(file.resolve()), split="train", cache_dir=scratch, **options
                )
            except Exception as error:  # many kinds, by format and version
                raise ArgumentError(name, str(file), _why(error, kind)) from None
            text, label = self._checked(file, table.column_names)
            names = getattr(table.features[label], "names", None)  # of a column that holds numbers of classes
            for row in table.select_columns([text, label]):
                yield _as_text(row[text]), _label(row[label], names)

    def _checked(self, file: Path, columns: list[str]) -> tuple[str, str]:
        """ArgumentError for a column that is not there."""
        for name, column in {"text": self.text, "label": self.label}.items():
            if column not in columns:
                raise ArgumentError(name, column, f"must be a column of {file.name}: {', '.join(map(str, columns))}")
        assert self.text is not None
        assert self.label is not None
        return self.text, self.label

    def notes(self) -> list[str]:
        notes, path, corpus = super().notes(), str(self.files["path"]), self.corpus
        if corpus.left_out:
            notes.append(f"path={path!r}: {corpus.left_out:,} rows without a text or a label are left out")
        if corpus.shared:
            notes.append(f"path={path!r}: {corpus.shared:,} texts for val or test are among those to learn from, too")
        return notes


def _header(name: str, file: Path, separator: str) -> list[str]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return next(csv.reader(stream, delimiter=separator), [])
    except UnicodeDecodeError:
        raise ArgumentError(name, str(file), "is not UTF-8") from None


def _why(error: Exception, kind: str) -> str:
    cause = error.__cause__ or error
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return "has no rows" if "no data" in reason else f"cannot be read as {kind}: {reason}"


def _label(value: Any, names: list[str] | None) -> str:
    """Empty where there is none; of a column whose numbers have `names`, -1 is none."""
    if names and value is not None:
        return names[value] if value >= 0 else ""
    text = _as_text(value)
    return "" if text in NOT_A_NUMBER else text


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _library() -> Any:
    """Hugging Face's datasets, told to stay off the network."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")
    try:
        import datasets
    except ImportError:
        raise ModuleNotFoundError('these data need the package datasets: pip install -e ".[hf]"') from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it has to say comes as an exception, too
    return datasets
