"""Placements: where norms stand, how weights begin, and that a new one is one class."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ticks.models import (
    DecoderTransformer,
    EncoderClassifier,
    EncoderDecoder,
    LayerNorm,
    Mlp,
    Pre,
    RMSNorm,
    VisionTransformer,
)
from ticks.models.placement import Norm, Sublayer


class Post:
    """N(x + F(x)): what another placement would be."""

    final = False

    def build(self, norm: Norm, d_model: int, *, site: str, layer: int, n_layers: int) -> nn.Module:
        self.layers = [*getattr(self, "layers", []), (layer, n_layers)]
        return norm(d_model)

    def __call__(self, x_BxTxD: Tensor, sublayer: Sublayer, site: nn.Module) -> Tensor:
        return site(x_BxTxD + sublayer(x_BxTxD))

    def scale(self, n_sublayers: int) -> dict[str, float]:
        return {"hidden": 3.0}


def test_pre_norm_is_its_formula() -> None:
    x_BxTxD, norm, double = torch.randn(2, 3, 8), LayerNorm(8), nn.Linear(8, 8)
    pre = Pre()
    site = pre.build(lambda d_model: norm, 8, site="ffn", layer=1, n_layers=1)
    assert torch.equal(pre(x_BxTxD, double, site), x_BxTxD + double(norm(x_BxTxD)))


def test_another_placement_is_one_class_that_every_model_takes() -> None:
    post = Post()
    model = DecoderTransformer(vocab_size=9, block_size=4, d_model=8, n_layers=3, n_heads=2, placement=post)
    assert isinstance(model.final_norm, nn.Identity)
    assert post.layers == [(1, 3), (1, 3), (2, 3), (2, 3), (3, 3), (3, 3)]
    h_BxTxD = model.embed(torch.randint(9, (2, 4)), model.embedding, model.position)
    block = model.blocks[0]
    a = block.norm1(h_BxTxD + block.attention(h_BxTxD))
    assert torch.equal(block(h_BxTxD), block.norm2(a + block.ffn(a)))


@pytest.mark.parametrize(
    ("placement", "expected"),
    [(Pre(), {"residual": 0.02 / math.sqrt(8), "hidden": 0.02}), (Post(), {"residual": 0.02, "hidden": 0.06})],
)
def test_weights_begin_by_role_as_the_placement_says(placement: Pre | Post, expected: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = DecoderTransformer(vocab_size=64, block_size=64, d_model=64, n_layers=4, n_heads=2, placement=placement)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for name, std in expected.items():
        chosen = [layer.weight for layer in layers if getattr(layer, "role", "") == name]
        assert len(chosen) == {"residual": 8, "hidden": 4}[name]
        assert torch.cat([weight.flatten() for weight in chosen]).std().item() == pytest.approx(std, rel=0.02)
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert model.position is not None
    assert model.position.std().item() == pytest.approx(0.02, rel=0.03)


def test_every_layer_with_weights_has_a_role() -> None:
    sizes: dict[str, Any] = {"d_model": 8, "n_layers": 1, "n_heads": 2, "norm": RMSNorm}
    pairs: dict[str, Any] = {"source_vocab_size": 9, "target_vocab_size": 9, "source_length": 4, "target_length": 4}
    for model in (
        EncoderClassifier(vocab_size=9, block_size=4, n_classes=3, **sizes),
        DecoderTransformer(vocab_size=9, block_size=4, **sizes),
        EncoderDecoder(**pairs, **sizes),
        VisionTransformer(image_size=(4, 4), n_channels=1, n_classes=3, patch_size=2, **sizes),
        Mlp(n_features=4, n_classes=3),
    ):
        without = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not hasattr(m, "role")]
        assert not without, type(model)


def test_each_stack_begins_as_its_own_number_of_sublayers_says() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder(source_vocab_size=9, target_vocab_size=9, source_length=4, target_length=4, d_model=64,
                           n_layers=4, n_heads=2)  # fmt: skip
    for stack, n in ((model.encoder, 8), (model.decoder, 12)):
        weights = [m.weight.flatten() for m in stack.modules() if getattr(m, "role", "") == "residual"]
        assert torch.cat(weights).std().item() == pytest.approx(0.02 / math.sqrt(n), rel=0.02)


class Sites(Pre):
    """Remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def build(self, norm: Norm, d_model: int, *, site: str, layer: int, n_layers: int) -> nn.Module:
        self.asked.append((site, layer))
        return super().build(norm, d_model, site=site, layer=layer, n_layers=n_layers)


def test_a_placement_is_told_its_site() -> None:
    EncoderDecoder(source_vocab_size=9, target_vocab_size=9, source_length=4, target_length=4, d_model=8, n_layers=1,
                   n_heads=2, placement=(sites := Sites()))  # fmt: skip
    assert sites.asked == [("attention", 1), ("ffn", 1), ("attention", 1), ("cross", 1), ("ffn", 1)]
