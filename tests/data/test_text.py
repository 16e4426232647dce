"""The user's own text: any file, any language, and one clear message where it cannot be."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import only_run, run_command
from ticks.arguments import ArgumentError
from ticks.data import TextFiles
from ticks.data.corpus import SPLITS
from ticks.data.text import documents

PARAGRAPHS = [f"Paragraph {i} tells of {'something ' * (i % 11 + 3)}and ends.\n" for i in range(500)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKS_CACHE", str(tmp_path / "cache"))


def text(path: Path | str | None, **options: Any) -> TextFiles:
    return TextFiles(path=str(path) if path else None, **{"block_size": 16, "global_batch_size": 4} | options)


def all_bytes(data: TextFiles) -> bytes:
    corpus = data.load()
    return b"".join(corpus.tokens(split).tobytes() for split in SPLITS)


def lines(content: bytes) -> list[bytes]:
    return sorted(line for line in content.replace(b"\0", b"\n").splitlines() if line.strip())


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_single_file_is_all_there_in_three_splits(tmp_path: Path) -> None:
    file = written(tmp_path / "book.txt", "\n".join(PARAGRAPHS))
    data = text(file)
    data.prepare_data()
    assert min(data.load().n_bytes.values()) > 17
    assert lines(all_bytes(data)) == lines(file.read_bytes())


def test_a_glob_takes_every_file_below_it(tmp_path: Path) -> None:
    first = written(tmp_path / "books" / "a.txt", "\n".join(PARAGRAPHS[:250]))
    second = written(tmp_path / "books" / "deep" / "b.txt", "\n".join(PARAGRAPHS[250:]))
    written(tmp_path / "books" / "c.md", "not this one")
    data = text(f"{tmp_path}/books/**/*.txt")
    assert lines(all_bytes(data)) == lines(first.read_bytes() + b"\n" + second.read_bytes())


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    file = written(tmp_path / "book[1].txt", "\n".join(PARAGRAPHS))
    assert text(file).files() == [file]


def test_bytes_that_are_no_utf_8_pass_unchanged(tmp_path: Path) -> None:
    content = b"\n\n".join(bytes([200 + i % 50]) * 30 + f" {i}".encode("latin-1") for i in range(1500))
    data = text(written(tmp_path / "latin.txt", content))
    data.prepare_data()
    assert lines(all_bytes(data)) == lines(content)


@pytest.mark.parametrize("sentence", ["春眠不覺曉 處處聞啼鳥。", "Съешь ещё этих мягких булок.", "السماء زرقاء 🌙"])
def test_another_language_comes_back_whole(tmp_path: Path, sentence: str) -> None:
    file = written(tmp_path / "text.txt", "\n\n".join(f"{i} {sentence}" for i in range(300)))
    data = text(file)
    data.prepare_data()
    found = all_bytes(data).decode()  # no character was cut
    assert found.count(sentence) == 300
    assert data.decode(data.encode(sentence)) == sentence


def test_a_file_of_one_very_long_line_is_cut_all_the_same(tmp_path: Path) -> None:
    content = b"".join(b"%07d " % i for i in range(150_000))  # 1.2 MB, no line end
    data = text(written(tmp_path / "line.txt", content))
    data.prepare_data()
    corpus = data.load()
    assert sum(corpus.documents.values()) > 150
    assert b" ".join(sorted(all_bytes(data).replace(b"\0", b" ").split())) == content.strip()


def test_windows_line_ends_cut_at_blank_lines_too(tmp_path: Path) -> None:
    file = written(tmp_path / "dos.txt", b"one line of text\r\n\r\n" * 50)
    assert {piece.endswith(b"text") for piece in documents(file, 64)} == {True}


def test_documents_are_cut_at_blank_lines_of_about_the_asked_size(tmp_path: Path) -> None:
    file = written(tmp_path / "book.txt", "\n".join(PARAGRAPHS))
    pieces = list(documents(file, 1000))
    assert all(1000 <= len(piece) <= 2200 for piece in pieces[:-1])
    assert all(piece.startswith(b"Paragraph") and piece.endswith(b"ends.") for piece in pieces)
    assert lines(b"\n".join(pieces)) == lines(file.read_bytes())


def test_a_text_without_blank_lines_is_cut_at_line_ends(tmp_path: Path) -> None:
    file = written(tmp_path / "poem.txt", "".join(f"line {i} of a long poem\n" for i in range(2000)))
    pieces = list(documents(file, 1000))
    assert len(pieces) > 5
    assert all(piece.endswith(b"poem") for piece in pieces)


@pytest.mark.parametrize("end", ["\n", "\n\n", " "])
@pytest.mark.parametrize("size", [20_000, 100_000, 1_000_000])
def test_a_small_text_of_any_shape_fills_every_split(tmp_path: Path, size: int, end: str) -> None:
    content = "".join(f"sentence {i} of a text{end}" for i in range(size // 24))
    corpus = text(written(tmp_path / "small.txt", content)).load()
    assert all(len(corpus.tokens(split)) > 16 for split in ("train", "val", "test"))


def test_a_changed_file_is_prepared_again(tmp_path: Path) -> None:
    file = written(tmp_path / "book.txt", "\n".join(PARAGRAPHS))
    before = text(file).load()
    assert text(file).load().directory == before.directory
    os.utime(file, ns=(1, 1))
    assert text(file).load().directory != before.directory


def test_a_missing_path_says_how_to_give_one() -> None:
    with pytest.raises(ValueError, match="path=None is not set: give a text file"):
        text(None)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"path='.*nowhere\.txt' matches no file"):
        text(tmp_path / "nowhere.txt")


def test_a_glob_that_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"path='.*\*\.txt' matches no file"):
        text(f"{tmp_path}/*.txt")


def test_a_folder_is_every_text_file_below_it(tmp_path: Path) -> None:
    first = written(tmp_path / "[books]" / "a.txt", "\n".join(PARAGRAPHS[:250]))
    second = written(tmp_path / "[books]" / "deep" / "b.md", "\n".join(PARAGRAPHS[250:]))
    written(tmp_path / "[books]" / ".hidden", "not this one")
    picture = written(tmp_path / "[books]" / "c.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    data = text(tmp_path / "[books]")
    assert lines(all_bytes(data)) == lines(first.read_bytes() + b"\n" + second.read_bytes())
    (note,) = data.notes()
    assert note.startswith(f"path='{tmp_path}/[books]': 2 text file(s), 0.1 MB; 1 that are no text were left out: ")
    assert note.endswith(str(picture))


def test_a_folder_without_text_says_why(tmp_path: Path) -> None:
    written(tmp_path / "a.bin", b"\0\1")
    with pytest.raises(ValueError, match=r"no text file below this folder; .*a\.bin is no text: it has bytes of"):
        text(tmp_path)


def test_an_empty_folder_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=f"path='nothing' matches no file in {tmp_path}; give a text file"):
        text("nothing")


def test_a_glob_below_a_folder_whose_name_looks_like_a_glob_finds_its_files(tmp_path: Path) -> None:
    file = written(tmp_path / "[a]" / "deep" / "b.txt", "\n".join(PARAGRAPHS))
    written(tmp_path / "a" / "b.txt", "not this one")
    assert text(f"{tmp_path}/[a]/**/*.txt").files() == [file]
    assert text(f"{tmp_path}/[a]/deep/*.txt").files() == [file]
    assert text(f"{tmp_path}/?/*.txt").files() == [tmp_path / "a" / "b.txt"]  # and a glob is still one


def test_a_bracket_that_matches_nothing_says_how_to_write_it(tmp_path: Path) -> None:
    written(tmp_path / "b[1].txt", "text")
    with pytest.raises(ArgumentError, match=r"\[ stands for itself only as \[\[\]"):
        text(f"{tmp_path}/b[1]*.txt")
    assert text(f"{tmp_path}/b[[]1]*.txt").files() == [tmp_path / "b[1].txt"]


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = written(tmp_path / "books" / "x.txt", "\n".join(PARAGRAPHS))
    for path in ("~/books/x.txt", "~/books/*.txt", "~/books"):
        assert text(path).files() == [file]


SENTENCES = {
    "gbk": "春眠不觉晓。处处闻啼鸟。夜来风雨声。花落知多少。",
    "shift_jis": "これは日本語の文章です。文字コードを調べるために書きました。",
    "cp1251": "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "latin-1": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
}
NAMES = {"gbk": "GB18030 (GBK)", "shift_jis": "Shift-JIS", "cp1251": "CP1251", "latin-1": "CP1252 or CP1250"}


@pytest.mark.parametrize("encoding", list(NAMES))
def test_text_in_another_encoding_trains_and_says_which_it_looks_like(tmp_path: Path, encoding: str) -> None:
    content = "\n\n".join(f"{i} {SENTENCES[encoding]}" for i in range(300)).encode(encoding)
    file = written(tmp_path / "my text.txt", content)
    data = text(file)
    assert lines(all_bytes(data)) == lines(content)
    (note,) = data.notes()
    assert f"{file} is not UTF-8 but looks like {NAMES[encoding]}; its bytes are learnt as they are" in note
    convert = note.partition("To convert it first: ")[2].replace("NEW", str(tmp_path / "new.txt"))
    assert subprocess.run(convert, shell=True).returncode == 0
    assert SENTENCES[encoding] in (tmp_path / "new.txt").read_text(encoding="utf-8")


def test_bytes_in_no_known_encoding_are_said_to_be_none(tmp_path: Path) -> None:
    content = b"\n".join(bytes([i % 255 + 1]) * 3 + b"\xff\xfe\x81" for i in range(3000))
    (note,) = text(written(tmp_path / "noise.txt", content)).notes()
    assert "noise.txt is not UTF-8; its bytes are learnt as they are" in note


@pytest.mark.parametrize("sentence", ["春眠不覺曉。", "plain"])
def test_utf_8_is_nothing_to_speak_of_even_if_the_sample_ends_within_a_character(tmp_path: Path, sentence: str) -> None:
    assert text(written(tmp_path / "text.txt", sentence * 10_000)).notes() == []


@pytest.mark.parametrize(("codec", "name"), [("utf-16", "UTF-16"), ("utf-32", "UTF-32")])
def test_text_with_a_byte_order_mark_says_how_to_make_it_utf_8(tmp_path: Path, codec: str, name: str) -> None:
    file = written(tmp_path / "windows.txt", "\n".join(PARAGRAPHS).encode(codec))
    with pytest.raises(ValueError, match=rf"windows\.txt is {name}, not UTF-8: iconv -f {name} -t UTF-8 ") as error:
        text(file)
    convert = str(error.value).partition("not UTF-8: ")[2].replace("NEW", str(tmp_path / "new.txt"))
    assert subprocess.run(convert, shell=True).returncode == 0
    assert (tmp_path / "new.txt").read_text(encoding="utf-8") == "\n".join(PARAGRAPHS)


def test_a_binary_file_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", "text")
    written(tmp_path / "b.bin", b"\x7fELF\0\0")
    for path in ("b.bin", "*"):
        with pytest.raises(ValueError, match=r"b\.bin is no text: it has bytes of value zero, which only end"):
            text(tmp_path / path)


def test_a_split_that_is_empty_because_of_copies_says_so(tmp_path: Path) -> None:
    data = text(written(tmp_path / "copies.txt", "the same paragraph again and again, all the time.\n\n" * 2000))
    with pytest.raises(ValueError, match=r"the \w+ split has 0 bytes.*; (\d+) of (\d+) documents are copies") as error:
        data.prepare_data()
    dropped, of = (int(number) for number in re.findall(r"(\d+) of (\d+) documents", str(error.value))[0])
    assert of > 300
    assert dropped >= of - 2


def test_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path='.*empty\.txt': no text in 1 file\(s\), all are empty"):
        text(written(tmp_path / "empty.txt", ""))


@pytest.mark.parametrize("content", ["too short", " \n \n "])
def test_a_text_too_small_for_one_window_says_so(tmp_path: Path, content: str) -> None:
    data = text(written(tmp_path / "short.txt", content))
    with pytest.raises(ValueError, match=r"too little text: the \w+ split has \d+ bytes.*block_size=16 needs 17"):
        data.prepare_data()


def test_settings_of_every_source_are_taken(tmp_path: Path) -> None:
    file = written(tmp_path / "book.txt", "\n".join(PARAGRAPHS))
    assert text(file, seed=7).seed == 7
    with pytest.raises(TypeError, match="blok_size"):
        text(file, blok_size=7)


def test_a_run_is_not_resumed_with_another_text(tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    content = "".join(f"Sentence {i} of a book.\n\n" for i in range(3000))
    text.write_text(content)
    code, output = run_command(tmp_path, "debug=fast", "data=text", "data.path=book.txt", "test=false",
                               "task.sample_bytes=0",
                               "trainer.max_steps=4", "trainer.val_check_interval=2")  # fmt: skip
    assert code == 0, output
    run = f"resume={only_run(tmp_path).relative_to(tmp_path)}"
    text.write_text(content[:-3000])
    code, output = run_command(tmp_path, run, "trainer.max_steps=6")
    assert code == 2, output
    assert "error: data: the text is not the one that this run has learnt from" in output
    assert "Traceback" not in output
    text.write_text(content)  # another file by its date, the same text
    code, output = run_command(tmp_path, run, "trainer.max_steps=6")
    assert code == 0, output


def test_a_text_that_is_gone_once_training_has_begun_is_not_missed(tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("\n".join(PARAGRAPHS))
    data = TextFiles(path=str(text), block_size=16, global_batch_size=4)
    data.prepare_data()
    data.setup("fit")
    text.unlink()
    data.prepare_data()
    data.setup("test")
    assert data.corpus is not None
