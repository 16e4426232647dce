"""Poolings and the encoder: padding changes nothing, whatever stands in it."""

import pytest
import torch

from ticks.models import ClassificationHead, EncoderClassifier
from ticks.models.heads import POOLINGS, first_pool, max_pool, mean_pool

X = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [50.0, 60.0]], [[5.0, 6.0], [7.0, 0.0], [9.0, -6.0]]])
PRESENT = torch.tensor([[True, True, False], [True, True, True]])


def test_poolings_see_only_what_is_there() -> None:
    assert mean_pool(X, PRESENT).tolist() == [[2.0, -3.0], [7.0, 0.0]]
    assert max_pool(X, PRESENT).tolist() == [[3.0, -2.0], [9.0, 6.0]]
    assert first_pool(X, PRESENT).tolist() == [[1.0, -2.0], [5.0, 6.0]]
    assert mean_pool(X).tolist() == X.mean(1).tolist()
    assert max_pool(X)[0].tolist() == [50.0, 60.0]


def encoder(**arguments: object) -> EncoderClassifier:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "block_size": 8, "n_classes": 3, "d_model": 16, "n_layers": 2, "n_heads": 2}
    return EncoderClassifier(**(sizes | {"pad_id": 0} | arguments)).eval()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_padding_changes_nothing(pooling: str, position: str) -> None:
    model = encoder(pooling=pooling, position=position)
    tokens = torch.tensor([[4, 2, 9], [1, 1, 3]])
    padded = torch.cat([tokens, torch.zeros(2, 3, dtype=torch.long)], dim=1)
    assert torch.allclose(model(tokens), model(padded), atol=1e-6)
    mixed = torch.tensor([[4, 2, 9, 0, 0], [1, 2, 3, 4, 5]])  # beside a longer one
    assert torch.allclose(model(tokens[:1]), model(mixed)[:1], atol=1e-6)


def test_without_a_padding_token_every_token_counts() -> None:
    model = encoder(pad_id=None)
    tokens = torch.tensor([[4, 2, 9]])
    assert not torch.allclose(model(tokens), model(torch.tensor([[4, 2, 9, 0]])))


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_an_encoder_sees_the_order_and_both_sides(position: str) -> None:
    model = encoder(position=position)
    assert not torch.allclose(model(torch.tensor([[4, 2, 9]])), model(torch.tensor([[9, 2, 4]])), atol=1e-7)
    assert not model.blocks[0].attention.causal


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pooling": "sum"}, "pooling='sum' is unknown; known: mean, max, first, last"),
        ({"pad_id": 11}, "pad_id=11 must be a token below vocab_size=11, or null"),
        ({"n_classes": 0}, "n_classes=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(**wrong)


def test_the_head_drops_out_while_training_only() -> None:
    head, x_BxTxD = ClassificationHead(64, 3, dropout=0.5), torch.randn(8, 2, 64)
    assert not torch.equal(head.train()(x_BxTxD), head(x_BxTxD))
    assert torch.equal(head.eval()(x_BxTxD), head(x_BxTxD))
