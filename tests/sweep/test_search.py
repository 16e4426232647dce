"""`method: bayes`: Optuna finds what is better, goes on where it was, and hears of failures."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_command
from ticks.config import ConfigError
from ticks.jobs import Outcome
from ticks.sweep.file import Sweep
from ticks.sweep.search import ASKED, Search

SPACE: dict[str, Any] = {
    "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
    "layers": {"min": 1, "max": 4},
    "norm": {"values": ["ln", "rms"]},
    "task": {"value": "t"},
}


def sweep(folder: Path, goal: str = "minimize", parameters: dict[str, Any] | None = None) -> Sweep:
    metric = {"name": "val/loss", "goal": goal}
    return Sweep(folder / "s.yaml", "bayes", parameters or SPACE, [], [], folder / "train.py", metric, None)


def found(search: Search, value: Any, n: int) -> list[dict[str, Any]]:
    """The values of n jobs, each of which came to `value` of them."""
    seen = []
    for number, values in enumerate(search.jobs()):
        seen.append(values)
        search.hear(number, {"val_loss": value(values)}, Outcome([], "finished"))
        if len(seen) == n:
            break
    return seen


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_it_comes_to_what_is_better(goal: str, tmp_path: Path) -> None:
    sign = 1 if goal == "minimize" else -1
    search = Search(sweep(tmp_path, goal, {"x": {"min": 0.0, "max": 9.0}, "task": {"value": "t"}}), tmp_path, 40)
    jobs = found(search, lambda values: sign * abs(values["x"] - 3), 40)
    distances = [abs(job["x"] - 3) for job in jobs]
    assert sum(distances[-10:]) < 0.6 * sum(distances[:10]), distances
    assert {job["task"] for job in jobs} == {"t"}


def test_a_second_call_asks_for_the_same_jobs_first(tmp_path: Path) -> None:
    first = found(Search(sweep(tmp_path), tmp_path, 6), lambda v: v["layers"], 4)
    assert json.loads((tmp_path / ASKED).read_text()) == first
    again = found(Search(sweep(tmp_path), tmp_path, 6), lambda v: v["layers"], 6)
    assert again[:4] == first
    assert len(json.loads((tmp_path / ASKED).read_text())) == 6


def test_a_failure_is_no_result(tmp_path: Path) -> None:
    search = Search(sweep(tmp_path), tmp_path, 3)
    jobs = search.jobs()
    for number, status in enumerate(("failed", "diverged", "finished")):
        next(jobs)
        search.hear(number, {"val_loss": 2.0} if status == "finished" else {}, Outcome([], status))
    assert [trial.state.name for trial in search._study.trials] == ["FAIL", "FAIL", "COMPLETE"]
    assert search._study.best_value == 2.0


@pytest.mark.parametrize(
    ("parameters", "metric", "message"),
    [
        ({"a": {"distribution": "normal", "mu": 1}}, None, r"distribution=normal: a search takes int_uniform, uniform"),
        ({"a": {"distribution": "uniform", "min": 1.0}}, None, r"parameters\.a: uniform 'max'"),
        (None, {}, r"metric=\{\} must have a name and a goal"),
        (None, {"name": "x", "goal": "up"}, r"must have a name and a goal, minimize or maximize"),
    ],
)
def test_what_it_cannot_search_is_named(
    parameters: dict[str, Any] | None, metric: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    wanted = sweep(tmp_path, parameters=parameters)
    if metric is not None:
        wanted = Sweep(wanted.file, "bayes", wanted.parameters, [], [], wanted.program, metric, None)
    with pytest.raises(ConfigError, match=message):
        Search(wanted, tmp_path, 3)


def test_without_optuna_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'method=bayes needs optuna: pip install -e "\.\[search\]"'):
        Search(sweep(tmp_path), tmp_path, 3)


def test_from_the_command_line_two_at_once_and_again(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import json, sys\nfrom pathlib import Path\ntold = dict(a.split('=', 1) for a in sys.argv[1:])\n"
        "run = Path(told['run_dir'])\nrun.mkdir(parents=True)\n"
        "about = {'status': 'finished', 'measure': 'loss', 'val_loss': abs(float(told['x']) - 3), 'train_seconds': 1}\n"
        "(run / 'summary.json').write_text(json.dumps(about))\n"
    )
    (tmp_path / "s.yaml").write_text(
        "method: bayes\nmetric: {name: val/loss, goal: minimize}\nparameters: {x: {min: 0.0, max: 9.0}}\n"
    )
    code, output = run_command(tmp_path, "sweep", "s.yaml", "count=4", "jobs=2", program="ticks")
    assert code == 0, output
    folder = tmp_path / "logs" / "sweeps" / "s"
    assert len(list(folder.glob("*/summary.json"))) == 4
    code, output = run_command(tmp_path, "sweep", "s.yaml", "count=5", "jobs=2", program="ticks")
    assert code == 0, output
    assert len(list(folder.glob("*/summary.json"))) == 5
    code, output = run_command(tmp_path, "sweep", "s.yaml", "count=9", "dry=true", program="ticks")
    assert "9 jobs in logs/sweeps/s, chosen as they go; 5 of them so far" in output
    code, output = run_command(tmp_path, "sweep", "s.yaml", program="ticks")
    assert (code, "method=bayes has no end: give count=N, or run_cap in the file" in output) == (2, True)


def test_two_searches_in_one_folder_and_jobs_that_repeat(tmp_path: Path) -> None:
    """One choice: the second job is the first one's."""
    space = {"norm": {"values": ["ln"]}}
    first, second = (Search(sweep(tmp_path, parameters=space), tmp_path, 3) for _ in range(2))
    jobs, others = first.jobs(), second.jobs()
    assert next(jobs) == next(others) == next(jobs) == next(others)
    for number in (0, 1):
        for search in (first, second):
            search.hear(number, {"val_loss": 1.0}, Outcome([], "finished"))
    assert len(json.loads((tmp_path / ASKED).read_text())) == 2


def test_a_search_that_goes_on_draws_something_new(tmp_path: Path) -> None:
    space = {"x": {"min": 0.0, "max": 9.0}}
    first = found(Search(sweep(tmp_path, parameters=space), tmp_path, 30), lambda v: v["x"], 4)
    again = found(Search(sweep(tmp_path, parameters=space), tmp_path, 30), lambda v: v["x"], 8)
    assert again[:4] == first
    assert len({values["x"] for values in again}) == 8
