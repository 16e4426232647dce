"""Language modelling on longer tokens: no text is lost, and their bits per byte compare with those of bytes."""

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import only_run, run_command, run_forked
from ticks.data import BBCNews, ByteData, TextFiles, TrainedBpe
from ticks.data.bytes import IGNORE
from ticks.data.corpus import SPLITS, Corpus, prepare
from ticks.data.encoded import encode, token_type
from ticks.data.tokenizers import END, FIRST_BYTE, START, Bpe
from ticks.tasks import LanguageModeling


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TICKS_CACHE", str(tmp_path_factory.mktemp("encoded")))
        yield


class Words(ByteData):
    def load(self) -> Corpus:
        texts = (f"document {i} of words, wörter, 語 {'word ' * (i % 9)}".encode() for i in range(400))
        return prepare([*texts, b"one that is \xff no UTF-8"], identity="words and wörter")


def words(vocab_size: int | None = 300, **options: Any) -> Words:
    tokenizer = None if vocab_size is None else TrainedBpe(vocab_size=vocab_size)
    data = Words(**{"block_size": 16, "global_batch_size": 8, "eval_batch_size": 4, "tokenizer": tokenizer} | options)
    data.prepare_data()
    data.setup()
    return data


def tokenizer_of(data: ByteData) -> Bpe:
    assert data.tokenizer is not None
    return data.tokenizer


# ---- the files


def test_every_byte_of_every_split_comes_back() -> None:
    data = words()
    assert data.corpus is not None
    encoded = encode(data.corpus, tokenizer_of(data))
    for split in SPLITS:
        tokens, text = encoded.tokens(split), data.corpus.tokens(split).tobytes()
        assert isinstance(tokens, np.memmap)
        assert tokens.dtype == np.uint16
        assert len(tokens) == encoded.n_tokens[split] < len(text)
        assert (tokens == END).sum() == data.corpus.documents[split]
        of = tokenizer_of(data).bytes_of
        assert b"".join(b"\0" if t == END else of[t] for t in tokens) == text
        assert encoded.lengths[tokens].sum() == len(text)


def test_it_is_encoded_once_and_again_if_it_is_cut_short() -> None:
    data = words()
    assert data.corpus is not None
    encoded = encode(data.corpus, tokenizer_of(data))
    file = encoded.directory / "val.bin"
    whole, stamp = file.read_bytes(), file.stat().st_mtime_ns
    encode(data.corpus, tokenizer_of(data))
    assert file.stat().st_mtime_ns == stamp
    file.write_bytes(whole[:-1])
    encode(data.corpus, tokenizer_of(data))
    assert file.read_bytes() == whole
    assert file.is_relative_to(data.corpus.directory)


def test_many_tokens_take_four_bytes_each() -> None:
    assert [token_type(n) for n in (259, 65536, 65537)] == ["uint16", "uint16", "uint32"]


# ---- what a model is given


def test_the_tokenizer_learns_from_the_training_split_alone() -> None:
    data = words()
    assert data.corpus is not None
    expected = Bpe.trained(list(data.corpus.texts("train")), vocab_size=300, identity="anything")
    assert tokenizer_of(data).digest == expected.digest
    everything = [text for split in SPLITS for text in data.corpus.texts(split)]
    assert Bpe.trained(everything, vocab_size=300, identity="more").digest != expected.digest


def test_data_say_what_their_tokens_are() -> None:
    data = words()
    assert data.shape == {"vocab_size": tokenizer_of(data).vocab_size, "block_size": 16}
    assert data.step_label() == "8 sequences of 16 tokens"
    assert data.tokens_per_step == 8 * 16
    assert data.bytes_per_token > 1.5
    assert data.notes() == [f"tokenizer.vocab_size=300: {data.bytes_per_token:.2f} bytes per token"]
    assert data.baselines() == words(None).baselines()
    (note,) = words(5000).notes()
    assert "; the text repeats too little for more than" in note


def test_bytes_are_as_they_always_were() -> None:
    data = words(None)
    assert data.shape == {"vocab_size": 256, "block_size": 16}
    assert data.step_label() == "8 sequences of 16 bytes"
    assert (data.bytes_per_token, data.notes(), data.tokenizer) == (1.0, [], None)
    assert data.eval_batches("val", 1, 0)[0].keys() == {"x", "y"}


def test_text_comes_back_from_its_tokens() -> None:
    data = words()
    assert data.decode(data.encode("Zeitgefühl, 語")) == "Zeitgefühl, 語"
    assert len(data.encode("words words words")) < 8
    written = torch.tensor([FIRST_BYTE + 255, FIRST_BYTE + 65, END, FIRST_BYTE + 66, START, FIRST_BYTE])
    assert data.decode(written) == "\ufffdA\n\nB\n\n"


def test_text_too_short_for_one_window_is_refused_in_tokens() -> None:
    with pytest.raises(ValueError, match=r"too little text: the val split has \d+ tokens .*block_size=900 needs 901"):
        words(block_size=900)


def test_a_state_brings_the_tokenizer_back_whatever_the_text_is_now(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("other text, all the same\n\n" * 400)
    then = words()
    now = TextFiles(
        path=str(tmp_path / "a.txt"), block_size=16, global_batch_size=4, tokenizer=TrainedBpe(vocab_size=300)
    )
    now.recall(then.state_dict())
    assert now.shape["vocab_size"] == then.shape["vocab_size"]
    assert now.bytes_per_token == then.bytes_per_token
    assert tokenizer_of(now).digest == tokenizer_of(then).digest


# ---- bits per byte


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_bytes_that_are_counted_are_those_of_the_targets(world_size: int) -> None:
    data = words()
    assert data.corpus is not None
    first = int(encode(data.corpus, tokenizer_of(data)).tokens("val")[0])  # a text's first token is no target
    n_bytes = 0
    for worker in range(world_size):
        batches = data.eval_batches("val", world_size, worker)
        for i in range(len(batches)):
            assert batches[i]["n_bytes"].shape == (4,)
            n_bytes += int(batches[i]["n_bytes"].sum())
    assert n_bytes == data.corpus.n_bytes["val"] - tokenizer_of(data).lengths[first]


class Fixed(nn.Module):
    """The same probabilities everywhere: (B, T) -> (B, T, V)."""

    def __init__(self, logits_V: Tensor) -> None:
        super().__init__()
        self.logits_V = nn.Parameter(logits_V)

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        return self.logits_V.expand(*tokens_BxT.shape, -1)


def measured(data: Words, logits_V: Tensor, directory: Path) -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=directory, enable_checkpointing=False,
    )  # fmt: skip
    (found,) = trainer.validate(LanguageModeling(Fixed(logits_V)), datamodule=data, verbose=False)
    return dict(found)


def test_the_same_model_of_bytes_has_the_same_bits_per_byte(tmp_path: Path) -> None:
    """Without merges tokens are bytes by other names."""
    logits = torch.randn(256, generator=torch.Generator().manual_seed(0))
    renamed = torch.cat([torch.full((FIRST_BYTE,), -torch.inf), logits])
    renamed[END], renamed[FIRST_BYTE] = logits[0], -torch.inf
    with_bytes, with_tokens = measured(words(None), logits, tmp_path), measured(words(259), renamed, tmp_path)
    assert with_tokens == pytest.approx(with_bytes, rel=1e-7)


def test_bits_per_byte_are_the_bits_of_the_text_over_its_bytes(tmp_path: Path) -> None:
    data = words()
    assert data.corpus is not None
    logits = torch.randn(data.shape["vocab_size"], generator=torch.Generator().manual_seed(0))
    targets = encode(data.corpus, tokenizer_of(data)).tokens("val")[1:].astype(np.int64)
    nats = -logits.log_softmax(0)[targets].double().sum().item()
    text = data.decode(torch.from_numpy(targets)).encode()
    n_bytes = len(text) - int((targets == END).sum())  # shown as two line ends
    found = measured(data, logits, tmp_path)
    assert found["val/loss"] == pytest.approx(nats / len(targets), rel=1e-6)
    assert found["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)
    assert (data.eval_batches("val", 1, 0)[0]["y"] != IGNORE).all()


# ---- whole runs

SMALL = ("debug=fast", "data=text", "data.block_size=8", "data/tokenizer=bpe", "data.tokenizer.vocab_size=300",
         "trainer.limit_val_batches=null", "trainer.limit_test_batches=null")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("run")
    (directory / "book.txt").write_text("".join(f"Sentence {i} of a long book.\n\n" for i in range(2000)))
    code, output = run_forked(
        2, directory, *SMALL, "data.path=book.txt", "strategy=diloco",
        "callbacks.checkpoint.every_n_train_steps=11",
    )  # fmt: skip
    assert code == 0, output
    return directory, output


def measures(output: str) -> list[float]:
    return [float(line.split()[1]) for line in output.splitlines() if line.startswith(("val_", "test_"))]


def test_a_run_says_what_its_tokens_are_and_writes_a_text(trained: tuple[Path, str]) -> None:
    directory, output = trained
    assert "8 sequences of 8 tokens per step" in output
    assert "data.tokenizer.vocab_size=300: " in output
    assert "unigram model, for comparison" in output
    assert json.loads((only_run(directory) / "summary.json").read_text())["tokens"] == 20 * 8 * 8
    code, text = run_command(
        directory, "generate", f"run={only_run(directory)}", "prompt=Sentence ", "bytes=50", program="ticks"
    )
    assert code == 0, text
    assert text.startswith("Sentence ")
    assert 20 < len(text) < 150


def test_any_number_of_workers_measures_the_same(trained: tuple[Path, str]) -> None:
    directory, _ = trained
    about = json.loads((only_run(directory) / "summary.json").read_text())
    code, output = run_command(directory, "eval", f"run={only_run(directory)}", "trainer.devices=1", program="ticks")
    assert code == 0, output
    expected = [about[f"{split}_{name}"] for split in ("val", "test") for name in ("loss", "bits_per_byte")]
    assert measures(output) == pytest.approx(expected, rel=1e-6)


def test_resuming_is_exact(trained: tuple[Path, str]) -> None:
    directory, _ = trained
    final = only_run(directory) / "checkpoints" / "final.ckpt"
    whole = torch.load(final, weights_only=True)["state_dict"]
    final.unlink()
    code, output = run_forked(2, directory, f"resume={only_run(directory)}")
    assert code == 0, output
    assert "step-00000011.ckpt" in output
    again = torch.load(final, weights_only=True)["state_dict"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_another_text_is_measured_with_the_tokens_that_were_learnt(trained: tuple[Path, str]) -> None:
    directory, _ = trained
    (directory / "other.txt").write_text("".join(f"Another book, line {i}.\n\n" for i in range(1000)))
    code, output = run_command(
        directory,
        "eval",
        f"run={only_run(directory)}",
        "data.path=other.txt",
        "trainer.devices=1",
        program="ticks",
    )
    assert code == 0, output
    assert all(3 < bits < 12 for bits in measures(output)[1::2]), output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.tokenizer.vocab_size=258"], "data.tokenizer.vocab_size=258 must be at least 259"),
        (["data/tokenizer=bbe"], "data/tokenizer=bbe is unknown; did you mean 'bpe'? valid: bpe, bytes"),
        (["data/tokenizer=bytes"], "unknown key 'data.tokenizer.vocab_size'"),
        (["data.path=tiny.txt"], "data: too little text: the "),
    ],
)
def test_a_mistake_is_one_line(trained: tuple[Path, str], arguments: list[str], message: str) -> None:
    directory, _ = trained
    (directory / "tiny.txt").write_text("short")
    code, output = run_command(directory, *SMALL, "data.path=book.txt", *arguments)
    assert code == 2, output
    assert message in output
    assert len(output.splitlines()) == 1


@pytest.mark.workers  # no worker, but seconds
def test_the_articles_take_fewer_tokens_than_bytes() -> None:
    data = BBCNews(block_size=64, global_batch_size=8, tokenizer=TrainedBpe(vocab_size=2048))
    data.prepare_data()
    data.setup()
    assert data.corpus is not None
    assert data.shape["vocab_size"] == 2048
    assert data.bytes_per_token == pytest.approx(3.2, abs=0.1)
