"""Rated snippets (ICWSM 2014, Hutto and Gilbert's VADER) as a table for `data=table`: positive or negative.

They are in the source distribution of the package vaderSentiment, not in its wheel:

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python docs/examples/vader_snippets.py vaderSentiment-3.3.2.tar.gz movies.csv       # or: tweets, amazon, nyt
    python train.py experiment=finetune_minilm data=table data.path=movies.csv data.text=text data.label=label
"""

import csv
import io
import sys
import tarfile
from pathlib import Path

FILES = {
    "movies": "movieReviewSnippets_GroundTruth.txt", "tweets": "tweets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt", "nyt": "nytEditorialSnippets_GroundTruth.txt",
}  # fmt: skip


def snippets(source: Path, which: str) -> list[tuple[str, str]]:
    """Texts with their label, from the archive within the archive; those rated exactly 0 are left out."""
    with tarfile.open(source) as outer:
        inner = next(member for member in outer if member.name.endswith("hutto_ICWSM_2014.tar.gz"))
        content = outer.extractfile(inner)
        assert content is not None
        with tarfile.open(fileobj=io.BytesIO(content.read())) as archive:
            file = next(member for member in archive if member.name.endswith(FILES[which]))
            lines = archive.extractfile(file)
            assert lines is not None
            rows = [line.split("\t") for line in lines.read().decode("utf-8", errors="replace").splitlines()]
    rated = [(float(row[1]), row[-1].strip()) for row in rows if len(row) >= 3]
    return [(text, "positive" if rating > 0 else "negative") for rating, text in rated if rating]


if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:3])
    found = snippets(source, out.stem)
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *found])
    print(f"{len(found):,} snippets in {out}, {sum(label == 'positive' for _, label in found):,} of them positive")
