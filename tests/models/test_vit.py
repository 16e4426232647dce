"""The Vision Transformer: its patches, where they are, who answers, and what of a Transformer it is."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ticks.models import LayerNorm, RMSNorm, TicksAdapter, VisionTransformer
from ticks.models.vit import Patches

SIZES = {"image_size": (4, 6), "n_channels": 3, "n_classes": 5, "patch_size": 2, "d_model": 8, "n_layers": 2}


def model(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**(SIZES | {"n_heads": 2} | options)).eval()


def lively(vit: VisionTransformer) -> VisionTransformer:
    """With parameters of which none is near 0."""
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.5)
    return vit


def images(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, 4, 6, generator=torch.Generator().manual_seed(1))


def swapped(x: torch.Tensor) -> torch.Tensor:
    """Two of the patches have changed places."""
    y = x.clone()
    y[:, :, :2, :2], y[:, :, 2:, 4:] = x[:, :, 2:, 4:], x[:, :, :2, :2]
    return y


def test_patches_are_cut_row_by_row() -> None:
    torch.manual_seed(0)
    patches = Patches(2, 3, 8)
    x_BxTxF = F.unfold(images(), kernel_size=2, stride=2).mT
    assert x_BxTxF.shape == (2, 6, 12)
    assert torch.allclose(patches(images()), F.linear(x_BxTxF, patches.linear.weight, patches.linear.bias), atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "max", "first"])
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_it_matters_where_a_patch_is(pooling: str, position: str) -> None:
    vit, x = lively(model(position=position, pooling=pooling)).double(), images().double()
    assert vit(x).shape == (2, 5)
    assert not torch.allclose(vit(x), vit(swapped(x)), atol=1e-6)


def test_without_positions_it_would_not() -> None:
    vit, x = lively(model()).double(), images().double()
    nn.init.zeros_(vit.position)
    assert torch.allclose(vit(x), vit(swapped(x)), atol=1e-12)


def test_every_patch_sees_every_patch() -> None:
    vit, seen = lively(model()), []
    vit.final_norm.register_forward_hook(lambda module, args, y: seen.append(y))
    for x in (images(), images() + F.pad(torch.ones(2, 3, 2, 2), (4, 0, 2, 0))):  # the last patch differs
        vit(x)
    assert (seen[0] != seen[1]).any(dim=2).all()


def test_the_class_token_stands_first_and_answers() -> None:
    vit, seen = lively(model(pooling="first")), []
    assert vit.position.shape == (7, 8)
    assert model().position.shape == (6, 8)
    vit.blocks.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    vit.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits = vit(images())
    assert torch.equal(seen[0][:, 0], (vit.class_token + vit.position[0]).expand(2, -1))
    assert torch.equal(logits, vit.head.linear(seen[1][:, 0]))
    logits.sum().backward()
    assert vit.class_token.grad.abs().sum() > 0
    assert model().class_token is None


def test_the_class_token_is_drawn_like_positions() -> None:
    """From zeros a norm's gradient would be a thousand times a token's."""
    assert 0.01 < model(pooling="first", d_model=512).class_token.std() < 0.03


def test_it_has_the_norms_and_the_ticks_that_are_chosen() -> None:
    assert {type(m) for m in model(norm=RMSNorm).modules()} & {LayerNorm, RMSNorm} == {RMSNorm}
    bare, ticks = model(), model(adapter=partial(TicksAdapter, width=3))
    assert torch.equal(bare(images()), ticks(images()))
    assert sum(isinstance(m, TicksAdapter) for m in ticks.modules()) == 2
    nn.init.ones_(ticks.blocks[1].adapter.up.weight)
    assert not torch.equal(bare(images()), ticks(images()))


def test_a_small_one_learns_a_few_images_by_heart() -> None:
    vit = model(pooling="first").train()
    x, y = torch.randn(4, 3, 4, 6), torch.arange(4)
    optimizer = torch.optim.Adam(vit.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(vit(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_one_number_is_both_sides() -> None:
    assert model(image_size=4)(torch.rand(1, 3, 4, 4)).shape == (1, 5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch_size": 4}, "patch_size=4 must divide the images' 4 x 6 pixels"),
        ({"patch_size": 0}, "patch_size=0 must be at least 1"),
        ({"n_channels": 0}, "n_channels=0 must be at least 1"),
        ({"n_classes": 0}, "n_classes=0 must be at least 1"),
        ({"pooling": "sum"}, "pooling='sum' is unknown; known: mean, max, first, last"),
        ({"n_heads": 3}, "n_heads=3 must divide d_model=8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**wrong)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images=\[2, 3, 6, 4\] is their shape, and it must be \(B, 3, 4, 6\)"):
        model()(images().mT)
