"""metrics.csv: every run's own record, whatever other logger it has. Read and written without torch.

Each row has `step` (optimizer steps done), `tokens`, `seconds` (training time, evaluation left out), `bytes_sent` (by
this worker so far) and some of: train/loss (worker 0's own, what is minimised),
train/... (what a task logs of its last step), lr, val/..., tick/....
"""

import csv
from pathlib import Path
from typing import Any

FIRST_COLUMNS = ["step", "tokens", "seconds", "bytes_sent"]


class MetricsFile:
    """A CSV file that is appended to row by row; a metric seen for the first time adds a column."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns = list(FIRST_COLUMNS)
        if path.exists():
            header, whole, _ = path.read_text().partition("\n")
            self.columns = header.split(",") if header and whole else self.columns

    def append(self, row: dict[str, Any]) -> None:
        if not self.path.exists() or not row.keys() <= set(self.columns):
            rows = self.rows()
            self.columns += [key for key in row if key not in self.columns]
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def rows(self) -> list[dict[str, str]]:
        """What was written whole: a line that a dying process cut short counts for nothing."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(line for line in file if line.endswith("\n")))

    def forget_after(self, step: int) -> None:
        """Drop rows of steps that will be done again, and a line that was cut short."""
        if self.path.exists():
            self._rewrite([row for row in self.rows() if row["step"] and int(row["step"]) <= step])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        scratch = self.path.with_suffix(".partial")
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        scratch.replace(self.path)
