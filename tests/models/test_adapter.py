"""Ticks beside the FFN: the same function at the start, the articles' gradients, the right number of parameters."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from ticks.models import DecoderTransformer, LayerNorm, RMSNorm, TicksAdapter

SIZES = {"vocab_size": 11, "block_size": 6, "d_model": 8, "n_layers": 3, "n_heads": 2}


def model(seed: int = 0, **options) -> DecoderTransformer:
    torch.manual_seed(seed)
    return DecoderTransformer(**SIZES | options)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_a_model_with_ticks_starts_as_its_base_bit_for_bit(norm: type, position: str) -> None:
    base = model(norm=norm, position=position)
    ticks = model(norm=norm, position=position, adapter=partial(TicksAdapter, width=4))
    tokens_BxT = torch.randint(11, (2, 6))
    assert torch.equal(base(tokens_BxT), ticks(tokens_BxT))
    shared, all_of_ticks = base.state_dict(), ticks.state_dict()
    assert all(torch.equal(shared[name], all_of_ticks[name]) for name in shared)
    assert {name for name in all_of_ticks if name not in shared} == {
        f"blocks.{i}.adapter.{name}" for i in range(3) for name in ("down.weight", "down.bias", "up.weight")
    }


def test_ticks_change_the_function_as_soon_as_p_is_not_zero() -> None:
    base, ticks = model(), model(adapter=partial(TicksAdapter, width=4))
    torch.nn.init.normal_(ticks.blocks[1].adapter.up.weight)
    tokens_BxT = torch.randint(11, (2, 6))
    assert not torch.allclose(base(tokens_BxT), ticks(tokens_BxT))


def test_the_first_gradient_reaches_p_and_then_q_and_r() -> None:
    ticks = model(adapter=partial(TicksAdapter, width=4))
    tokens_BxT = torch.randint(11, (2, 6))
    optimizer = torch.optim.SGD(ticks.parameters(), lr=0.1)
    adapter = ticks.blocks[0].adapter
    for reached in ([False, False, True], [True, True, True]):
        optimizer.zero_grad()
        F.cross_entropy(ticks(tokens_BxT).flatten(0, 1), tokens_BxT.flatten()).backward()
        assert [bool(p.grad.any()) for p in (adapter.down.weight, adapter.down.bias, adapter.up.weight)] == reached
        optimizer.step()


def test_gradients_are_those_of_the_articles() -> None:
    adapter = TicksAdapter(5, width=3, activation="silu").double()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    x_NxD, G_NxD = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    adapter(x_NxD).backward(G_NxD)
    Q, r, P = adapter.down.weight.detach(), adapter.down.bias.detach(), adapter.up.weight.detach()
    z_NxK = x_NxD @ Q.T + r
    slope_NxK = z_NxK.sigmoid() * (1 + z_NxK * (1 - z_NxK.sigmoid()))
    back_NxK = (G_NxD @ P) * slope_NxK
    assert torch.allclose(adapter.up.weight.grad, G_NxD.T @ F.silu(z_NxK))  # dP = G s(Qx+r)^T
    assert torch.allclose(adapter.down.weight.grad, back_NxK.T @ x_NxD)  # dQ = (P^T G * s'(Qx+r)) x^T
    assert torch.allclose(adapter.down.bias.grad, back_NxK.sum(0))  # dr = P^T G * s'(Qx+r)


def test_the_scale_multiplies_the_output() -> None:
    one, four = TicksAdapter(5, width=3), TicksAdapter(5, width=3, scale=4.0)
    torch.nn.init.normal_(one.up.weight)
    four.load_state_dict(one.state_dict())
    x_NxD = torch.randn(7, 5)
    assert torch.allclose(4 * one(x_NxD), four(x_NxD))


@pytest.mark.parametrize(("d_model", "width"), [(8, 1), (8, 4), (128, 16)])
def test_each_layers_ticks_have_2dk_plus_k_parameters(d_model: int, width: int) -> None:
    sizes = {"d_model": d_model}
    more = model(adapter=partial(TicksAdapter, width=width), **sizes)
    extra = sum(p.numel() for p in more.parameters()) - sum(p.numel() for p in model(**sizes).parameters())
    assert extra == 3 * (2 * d_model * width + width)


def test_ticks_read_the_ffns_own_input() -> None:
    ticks = model(adapter=partial(TicksAdapter, width=4))
    block, seen = ticks.blocks[0], {}
    block.ffn.register_forward_pre_hook(lambda module, args: seen.update(ffn=args[0]))
    block.adapter.register_forward_pre_hook(lambda module, args: seen.update(ticks=args[0]))
    ticks(torch.randint(11, (2, 6)))
    assert seen["ticks"] is seen["ffn"]


def test_ticks_are_hidden_units_of_the_ffn() -> None:
    """FFN(x) + P s(Qx + r) is one FFN with k more hidden units: the formula itself, to rounding."""
    block = model(adapter=partial(TicksAdapter, width=4)).double().blocks[0]
    torch.nn.init.normal_(block.adapter.up.weight)
    x_NxD = torch.randn(5, 8, dtype=torch.float64)
    W1, b1 = (
        torch.cat([block.ffn.fc1.weight, block.adapter.down.weight]),
        torch.cat([block.ffn.fc1.bias, block.adapter.down.bias]),
    )
    W2 = torch.cat([block.ffn.fc2.weight, block.adapter.up.weight], dim=1)
    merged_NxD = F.linear(F.gelu(F.linear(x_NxD, W1, b1)), W2, block.ffn.fc2.bias)
    assert torch.allclose(block.ffn(x_NxD) + block.adapter(x_NxD), merged_NxD, atol=1e-13)


@pytest.mark.parametrize("width", [0, -1])
def test_a_width_below_one_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=rf"width={width} must be at least 1"):
        TicksAdapter(8, width=width)


def test_an_unknown_activation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="activation='swish' is unknown; known: gelu, relu, silu"):
        TicksAdapter(8, activation="swish")
