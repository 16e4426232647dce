"""The encoder-decoder: padding changes nothing, the target's future is not seen, decoding computes the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ticks.models import EncoderDecoder, TicksAdapter
from ticks.models.decode import decode
from ticks.models.encoder_decoder import Growing

POSITIONS = ["learned", "sinusoidal", "rotary"]
SOURCE = torch.tensor([[4, 3, 9, 5], [7, 7, 3, 8]])
TARGET = torch.tensor([[1, 5, 6], [1, 3, 4]])


def model(**arguments: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    sizes = {"source_vocab_size": 11, "target_vocab_size": 7, "source_length": 8, "target_length": 6}
    sizes |= {"d_model": 16, "n_layers": 2, "n_heads": 2}
    made = EncoderDecoder(**(sizes | arguments)).eval()
    for parameter in made.parameters():  # small initial weights make everything nearly alike
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("position", POSITIONS)
def test_padding_changes_nothing(position: str) -> None:
    made = model(position=position)
    logits = made(SOURCE, TARGET)
    assert logits.shape == (2, 3, 7)
    padding = torch.zeros(2, 2, dtype=torch.long)
    padded = made(torch.cat([SOURCE, padding], dim=1), torch.cat([TARGET, padding], dim=1))
    assert torch.allclose(logits, padded[:, :3], atol=1e-5)
    assert torch.equal(made.decode(SOURCE), made.decode(torch.cat([SOURCE, padding], dim=1)))


@pytest.mark.parametrize("position", POSITIONS)
def test_the_whole_source_is_seen_and_the_target_up_to_here(position: str) -> None:
    made = model(position=position)
    before = made(SOURCE, TARGET)
    for s in range(4):
        changed = SOURCE.clone()
        changed[:, s] = 10
        assert not torch.isclose(made(changed, TARGET), before, atol=1e-5).all(-1).any()
    for t in range(3):
        changed = TARGET.clone()
        changed[:, t] = 2
        after = made(SOURCE, changed)
        assert torch.allclose(after[:, :t], before[:, :t], atol=1e-6)
        assert not torch.allclose(after[:, t], before[:, t], atol=1e-5)
    assert not torch.allclose(made(SOURCE.flip(1), TARGET), before, atol=1e-5)  # the order counts


@pytest.mark.parametrize("position", POSITIONS)
def test_growing_token_by_token_computes_what_the_whole_target_does(position: str) -> None:
    made = model(position=position)
    target = torch.tensor([[1, 5, 6, 3, 4, 5], [1, 3, 4, 4, 6, 5]])
    expected = made(SOURCE, target)
    growing = Growing(made, SOURCE)
    for t in range(3):
        assert torch.allclose(growing(target[:, t]), expected[:, t], atol=1e-5)
    growing.select(torch.tensor([1, 1, 0]))
    for t in range(3, 6):
        grown = growing(target[[1, 1, 0], t])
        assert torch.allclose(grown, expected[[1, 1, 0], t], atol=1e-5)


def test_the_source_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = model(), []
    monkeypatch.setattr(made, "encode", lambda source: calls.append(1) or EncoderDecoder.encode(made, source))
    made.decode(SOURCE, beam=3)
    assert len(calls) == 1


class Anew:
    """The whole target again for every token."""

    def __init__(self, made: EncoderDecoder, source: Tensor) -> None:
        self.made, self.source, self.target = made, source, source[:, :0]

    def __call__(self, tokens_N: Tensor) -> Tensor:
        self.target = torch.cat([self.target, tokens_N[:, None]], dim=1)
        return self.made(self.source, self.target)[:, -1]

    def select(self, rows_N: Tensor) -> None:
        self.source, self.target = self.source[rows_N], self.target[rows_N]


@pytest.mark.parametrize("beam", [1, 4])
def test_what_is_decoded_is_what_the_whole_model_holds_to_be_likely(beam: int) -> None:
    made = model()
    source = torch.randint(3, 11, (20, 5))
    with torch.no_grad():
        expected = decode(Anew(made, source), 20, beam=beam, max_length=6, **made.special)
    assert torch.equal(made.decode(source, beam=beam), expected)
    assert len({int((row != 0).sum()) for row in expected}) > 1


def test_a_decoded_sequence_is_at_most_as_long_as_there_are_positions() -> None:
    made = model()
    made.target_embedding.weight.data[2] = 0.0
    made.decoder_norm.bias.data.fill_(5.0)
    made.target_embedding.weight.data[5] = 5.0  # which is always the likeliest
    assert made.decode(SOURCE).tolist() == [[5] * 6] * 2
    assert made.decode(SOURCE, beam=2, max_length=3).shape == (2, 3)
    with pytest.raises(ValueError, match="max_length=7 must be at least 1 and at most 6"):
        made.decode(SOURCE, max_length=7)


def test_ticks_stand_beside_every_ffn_and_change_nothing_at_first() -> None:
    torch.manual_seed(0)
    sizes: Any = {"source_vocab_size": 11, "target_vocab_size": 7, "source_length": 8, "target_length": 6}
    sizes |= {"d_model": 16, "n_layers": 2, "n_heads": 2}
    base = EncoderDecoder(**sizes)
    torch.manual_seed(0)
    adapted = EncoderDecoder(**sizes, adapter=lambda d_model: TicksAdapter(d_model, width=3))
    names = {name.rpartition(".adapter.")[0] for name, _ in adapted.named_parameters() if ".adapter." in name}
    assert names == {"encoder.0", "encoder.1", "decoder.0", "decoder.1"}
    assert torch.equal(base.eval()(SOURCE, TARGET), adapted.eval()(SOURCE, TARGET))


def test_the_sites_of_both_stacks_have_their_norms() -> None:
    names = {name for name, _ in model().named_parameters() if "norm" in name and name.endswith("weight")}
    blocks = {
        f"{stack}.{i}.{norm}.weight" for stack in ("encoder", "decoder") for i in (0, 1) for norm in ("norm1", "norm2")
    }
    cross = {f"decoder.{i}.norm_cross.weight" for i in (0, 1)}
    assert names == blocks | cross | {"encoder_norm.weight", "decoder_norm.weight"}


def test_a_shared_vocabulary_has_one_embedding() -> None:
    made = model(shared_vocabulary=True, source_vocab_size=7)
    assert "target_embedding.weight" not in dict(made.named_parameters())
    source = torch.tensor([[4, 3, 5, 5]])
    before = made(source, TARGET[:1])
    made.source_embedding.weight.data[6] += 1  # a token of the target
    after = made(source, TARGET[:1])
    assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-5)
    assert "source_embedding.weight" in dict(model().named_parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"source_vocab_size": 0}, "source_vocab_size=0 must be at least 1"),
        ({"target_length": 0}, "target_length=0 must be at least 1"),
        ({"end_id": 7}, "end_id=7 must be a token of its own below target_vocab_size=7"),
        ({"shared_vocabulary": True}, "source_vocab_size=11 must be target_vocab_size=7 if it is shared"),
        ({"start_id": 0}, "pad_id=0 must be a token of its own below target_vocab_size=7"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**wrong)
