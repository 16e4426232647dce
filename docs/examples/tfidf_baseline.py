"""TF-IDF of the words and logistic regression, on the labelled texts that `configs/sweep/tuning.yaml` gives to a
pretrained model, tested on the same ones:

    python docs/examples/tfidf_baseline.py                # BBC topics
    python docs/examples/tfidf_baseline.py movies.csv     # a table with the columns text and label
"""

import sys
from typing import Any

from ticks.data import Table, Topics
from ticks.data.labelled import LabelledTexts, tfidf
from ticks.report.statistics import estimate

SEEDS = range(5)
FEW: dict[str, Any] = {"block_size": 128, "global_batch_size": 16}


def accuracy(data: LabelledTexts) -> float:
    """On the test texts, of what is learnt from those that `data` would train on."""
    corpus, rows = data.corpus, data.load()["train"].rows  # type: ignore[attr-defined]
    texts = list(corpus.texts("train"))
    chosen = [texts[row] for row in rows]
    found = tfidf(chosen, corpus.labels("train")[rows], list(corpus.texts("test")), corpus.labels("test"))
    return next(iter(found.values()))


def main(file: str | None, labelled: tuple[int, ...] = (10, 50, 100)) -> None:
    for n in labelled:
        made: list[LabelledTexts] = [
            Table(path=file, text="text", label="label", n_per_class=n, seed=seed, **FEW)
            if file
            else Topics(n_per_class=n, seed=seed, **FEW)
            for seed in SEEDS
        ]
        found = estimate([accuracy(data) for data in made])
        print(f"{n} of each class: {found.mean:.3f} ± {found.half:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
