"""A table of texts and labels: every format gives the same, and every mistake is one line."""

import json
import math
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from tests.conftest import run_command
from ticks.arguments import ArgumentError
from ticks.data import Table
from ticks.data.corpus import SPLITS, split_of

FORMATS = ("csv", "tsv", "jsonl", "json", "parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TICKS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def frame(n: int = 150) -> pd.DataFrame:
    rows = [{"text": f"{['good', 'bad'][i % 2]} thing {i}", "stars": 9 + i % 2, "same": "x"} for i in range(n)]
    rows[0]["text"], rows[1]["text"], rows[2]["text"] = "NA", 'two\nlines, "quoted"', "007"
    rows[3]["stars"], rows[4]["text"] = None, " "
    made = pd.DataFrame(rows)
    return made.assign(stars=made["stars"].astype("Int64"))


def write(made: pd.DataFrame, path: Path) -> Path:
    match path.suffix:
        case ".csv" | ".tsv":
            made.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
        case ".jsonl":
            made.to_json(path, orient="records", lines=True)
        case ".json":
            made.to_json(path, orient="records")
        case ".parquet":
            made.to_parquet(path)
    return path


def table(path: Path | str | None, **options: Any) -> Table:
    chosen = {"text": "text", "label": "stars", "block_size": 16, "global_batch_size": 8}
    return Table(**{"path": None if path is None else str(path)} | chosen | options)


def contents(data: Table) -> dict[str, list[tuple[str, str]]]:
    names = data.corpus.class_names
    return {
        split: [
            (text.decode(), names[label])
            for text, label in zip(data.corpus.texts(split), data.corpus.labels(split), strict=True)
        ]
        for split in SPLITS
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    data = table(write(frame(), tmp_path / f"a.{kind}"))
    expected: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for row in frame().to_dict("records"):
        if row["text"].strip() and not pd.isna(row["stars"]):
            expected[split_of(row["text"].encode())].append((row["text"], str(row["stars"])))
    assert contents(data) == expected
    assert ("NA", "9") in chain.from_iterable(expected.values())
    assert data.class_names == ["9", "10"]
    assert data.corpus.left_out == 2
    assert data.notes()[1] == f"path='{tmp_path}/a.{kind}': 2 rows without a text or a label are left out"
    data.prepare_data()
    assert data.shape["n_classes"] == 2


def test_what_the_library_prepares_is_not_kept_and_the_table_is_read_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(frame(), tmp_path / "a.csv")
    first = table(file).corpus
    assert [path.name for path in cache.iterdir()] == [first.directory.name]
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("read again"))
        assert table(file).corpus == first
    write(frame(120), file)
    assert table(file).corpus != first


def test_labels_that_a_file_names_have_their_names(tmp_path: Path) -> None:
    features = datasets.Features(text=datasets.Value("string"), stars=datasets.ClassLabel(names=["bad", "good"]))
    rows = {"text": [f"thing {i}" for i in range(60)], "stars": [i % 2 for i in range(60)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    data = table(tmp_path / "a.parquet")
    assert data.class_names == ["bad", "good"]
    assert dict(chain.from_iterable(contents(data).values()))["thing 3"] == "good"


@pytest.mark.parametrize("values", [[True, False], [1.0, 2.0], ["yes", "no"]])
def test_labels_can_be_numbers_words_or_truths(tmp_path: Path, values: list[Any]) -> None:
    made = pd.DataFrame({"text": [f"thing {i}" for i in range(60)], "stars": [values[i % 2] for i in range(60)]})
    found = {tuple(table(write(made, tmp_path / f"a.{kind}")).class_names) for kind in ("jsonl", "parquet")}
    assert found == {tuple(sorted(str(int(v)) if type(v) is float else str(v) for v in values))}


@pytest.mark.parametrize("given", [["val_path"], ["test_path"], ["val_path", "test_path"]])
def test_splits_can_be_files(tmp_path: Path, given: list[str]) -> None:
    files = {name: write(frame(40 + i), tmp_path / f"{name}.jsonl") for i, name in enumerate(given)}
    data = table(write(frame(), tmp_path / "a.csv"), **{name: str(file) for name, file in files.items()})
    found = contents(data)
    for i, name in enumerate(given):
        assert len(found[name.removesuffix("_path")]) == 38 + i
    assert sum(len(found[split]) for split in SPLITS if f"{split}_path" not in given) == 148
    if len(given) == 1:
        kept = {"val_path": "test", "test_path": "val"}[given[0]]
        assert all(split_of(text.encode()) == kept for text, _ in found[kept])
    assert any("for val or test are among those to learn from, too" in note for note in data.notes())


def with_gaps(missing: list[Any]) -> pd.DataFrame:
    labels = [["yes", "no"][i % 2] for i in range(60)]
    labels[10 : 10 + len(missing)] = missing
    return pd.DataFrame({"text": [f"thing {i}" for i in range(60)], "stars": labels})


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_without_a_label_are_left_out_however_that_is_written(tmp_path: Path, kind: str) -> None:
    missing = ["", " ", "nan", "NaN", None, float("nan")]
    data = table(write(with_gaps(missing), tmp_path / f"a.{kind}"))
    assert data.class_names == ["no", "yes"]
    assert sum(data.corpus.sizes.values()) == 54
    assert data.notes()[1] == f"path='{tmp_path}/a.{kind}': 6 rows without a text or a label are left out"


def test_numbers_that_are_none_and_unnamed_classes_are_no_labels(tmp_path: Path) -> None:
    texts, gaps = [f"thing {i}" for i in range(60)], [math.nan if i < 9 else i % 2 for i in range(60)]
    datasets.Dataset.from_dict({"text": texts, "stars": gaps}).to_parquet(tmp_path / "a.parquet")
    assert table(tmp_path / "a.parquet").class_names == ["0", "1"]
    features = datasets.Features(text=datasets.Value("string"), stars=datasets.ClassLabel(names=["bad", "good"]))
    rows = {"text": texts, "stars": [-1 if i < 9 else i % 2 for i in range(60)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "b.parquet")
    for name in ("a", "b"):
        corpus = table(tmp_path / f"{name}.parquet").corpus
        assert (corpus.left_out, len(corpus.class_names), sum(corpus.sizes.values())) == (9, 2, 51)


def test_of_a_table_without_any_label_nothing_is_left(tmp_path: Path) -> None:
    file = write(with_gaps(["nan"] * 50)[10:], tmp_path / "a.csv")
    with pytest.raises(ArgumentError, match=r"^path='.*' has no row with both 'text' and 'stars'$"):
        _ = table(file).corpus


def test_a_home_directory_can_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(frame(), tmp_path / "a.csv")
    assert table("~/a.csv").corpus.left_out == 2


# ---- mistakes


def raw(content: bytes | str) -> Callable[[Path], Path]:
    def written(path: Path) -> Path:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return written


@pytest.mark.parametrize(
    ("name", "make", "options", "message"),
    [
        ("a.csv", None, {}, r"^path='.*a\.csv' is no file$"),
        ("a.xlsx", raw("x"), {}, r"^path='.*' must end in one of \.csv, \.tsv, \.jsonl, \.ndjson, \.json, \.parquet$"),
        ("a.csv", raw(""), {}, r"^path='.*' is empty$"),
        ("a.csv", raw("text,stars\n"), {}, r"^path='.*' has no rows$"),
        ("a.csv", raw("text,stars\n,1\nb,\n"), {}, r"^path='.*' has no row with both 'text' and 'stars'$"),
        ("a.csv", raw(b"text,stars\ncaf\xe9,1\n"), {}, r"^path='.*' is not UTF-8$"),
        ("a.jsonl", raw("{no json\n"), {}, r"^path='.*' cannot be read as json: JSON parse error"),
        ("a.parquet", raw("no parquet"), {}, r"^path='.*' cannot be read as parquet: "),
        ("a.csv", raw("text,stars\na,1\nb,1\n"), {}, r"^label='stars' is '1' in every row: nothing"),
        ("a.csv", raw("text,stars\na,1\nb,2\nc,3\n"), {}, r"^label='stars' has 3 different values in 3 rows, which"),
        ("a.csv", write, {"text": "txt"}, r"^text='txt' must be a column of a\.csv: text, stars, same$"),
        ("a.jsonl", write, {"label": "lable"}, r"^label='lable' must be a column of a\.jsonl: text, stars, same$"),
        ("a.csv", write, {"label": None}, r"^label=None must be a column of a\.csv: text, stars, same$"),
        ("a.csv", write, {"label": "text"}, r"^label='text' has 149 different values in 149 rows, which are no"),
        ("a.csv", write, {"val_path": "nowhere.csv"}, r"^val_path='nowhere\.csv' is no file in /"),
        ("a.csv", write, {"test_path": "b.txt"}, r"^test_path='b\.txt' must end in one of"),
    ],
)
def test_a_mistake_names_what_is_wrong(tmp_path: Path, name: str, make: Any, options: Any, message: str) -> None:
    if make is write:
        write(frame(), tmp_path / name)
    elif make is not None:
        make(tmp_path / name)
    with pytest.raises(ArgumentError, match=message):
        _ = table(tmp_path / name, **options).shape


def test_without_a_file_the_endings_are_named() -> None:
    with pytest.raises(ArgumentError, match=r"^path=None is not set: give the file to read, one of \.csv, "):
        table(None)


def test_without_the_library_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(frame(), tmp_path / "a.csv")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'^these data need .*: pip install -e "\.\[hf\]"$'):
        _ = table(file).corpus


# ---- whole runs

SMALL = ("experiment=topics", "data=table", "debug=fast", "data.path=a.csv", "data.text=text", "data.label=stars")


def test_a_table_is_learnt_and_another_one_measured(tmp_path: Path) -> None:
    write(frame(), tmp_path / "a.csv")
    code, output = run_command(tmp_path, *SMALL, "trainer.max_steps=40", "run_dir=run")
    assert code == 0, output
    assert "data.path='a.csv': 2 rows without a text or a label are left out" in output
    about = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert about["measure"] == "accuracy"
    assert about["val_accuracy"] > 0.9
    made = frame(300).assign(stars=np.where(np.arange(300) % 3, 10, 11))
    write(made, tmp_path / "b.csv")
    code, output = run_command(tmp_path, "eval", "run=run", "data.path=b.csv", program="ticks")
    assert code == 2, output
    assert output.endswith("'11' is none of the classes that were learnt: 9, 10\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: data.label=None must be a column of a.csv: text, stars, same"),
        (("data.label=star",), "error: data.label='star' must be a column of a.csv: text, stars, same"),
        (("data.path=b.csv",), "error: data.path='b.csv' is no file in "),
    ],
)
def test_a_mistake_names_the_key(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    write(frame(), tmp_path / "a.csv")
    code, output = run_command(tmp_path, *SMALL[:-1], *arguments)
    assert code == 2, output
    assert message in output
    assert len(output.splitlines()) == 1
