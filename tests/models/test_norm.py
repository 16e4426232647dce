"""Norms against the worked example, against torch, and against their own gradient."""

import pytest
import torch
from torch import nn

from ticks.models import DecoderTransformer, LayerNorm, RMSNorm


def with_random_parameters(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=1.0, generator=generator)
    return norm


def result_and_gradients(norm: nn.Module, x_BxTxD: torch.Tensor, towards_BxTxD: torch.Tensor) -> list[torch.Tensor]:
    x_BxTxD = x_BxTxD.clone().requires_grad_()
    y_BxTxD = norm(x_BxTxD)
    y_BxTxD.backward(towards_BxTxD)
    assert x_BxTxD.grad is not None
    return [y_BxTxD.detach(), x_BxTxD.grad, *(p.grad for p in norm.parameters() if p.grad is not None)]


def test_layer_norm_gives_the_worked_example() -> None:
    y_D = LayerNorm(5, eps=1e-8)(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert torch.allclose(y_D, torch.tensor([-1.41421356, -0.70710678, 0.0, 0.70710678, 1.41421356]), atol=1e-6)


def test_layer_norm_is_over_the_features_of_one_token_and_not_over_the_batch() -> None:
    x_BxTxD = torch.randn(3, 4, 8)
    norm = LayerNorm(8)
    assert torch.equal(norm(x_BxTxD)[:1], norm(x_BxTxD[:1]))
    assert torch.allclose(norm(x_BxTxD).mean(-1), torch.zeros(3, 4), atol=1e-6)


@pytest.mark.parametrize("eps", [1e-8, 1e-5, 0.1])
@pytest.mark.parametrize(("ours", "torchs"), [(LayerNorm, nn.LayerNorm), (RMSNorm, nn.RMSNorm)])
def test_norms_equal_torchs_forward_and_backward(ours: type, torchs: type, eps: float) -> None:
    x_BxTxD, towards_BxTxD = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    mine, reference = with_random_parameters(ours(16, eps=eps)), with_random_parameters(torchs(16, eps=eps))
    for a, b in zip(
        result_and_gradients(mine, x_BxTxD, towards_BxTxD),
        result_and_gradients(reference, x_BxTxD, towards_BxTxD),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


def test_rms_norms_written_out_gradient_is_the_numerical_one() -> None:
    norm = with_random_parameters(RMSNorm(5, eps=1e-3).double())
    x_BxTxD = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = norm.weight.detach().clone().requires_grad_()
    run = lambda x, w: torch.func.functional_call(norm, {"weight": w}, (x,))  # noqa: E731
    assert torch.autograd.gradcheck(run, (x_BxTxD, weight))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 2, 3, 4)])
def test_rms_norm_takes_any_number_of_leading_dimensions(shape: tuple[int, ...]) -> None:
    x, towards = torch.randn(shape), torch.randn(shape)
    for a, b in zip(
        result_and_gradients(RMSNorm(4), x, towards),
        result_and_gradients(nn.RMSNorm(4, eps=1e-6), x, towards),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-6)


def test_rms_norm_takes_a_transposed_input() -> None:
    x_BxTxD = torch.randn(4, 3, 2).transpose(0, 2)
    mine = result_and_gradients(RMSNorm(4), x_BxTxD, torch.ones(2, 3, 4))
    same = result_and_gradients(RMSNorm(4), x_BxTxD.contiguous(), torch.ones(2, 3, 4))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mine, same, strict=True))


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_rms_norm_trains_with_half_precision_inputs_and_single_precision_parameters() -> None:
    _, grad_x, grad_weight = result_and_gradients(
        RMSNorm(4), torch.randn(2, 3, 4).bfloat16(), torch.ones(2, 3, 4).bfloat16()
    )
    assert (grad_x.dtype, grad_weight.dtype) == (torch.bfloat16, torch.float32)


def test_norms_survive_a_token_of_zeros() -> None:
    for norm in (LayerNorm(4), RMSNorm(4)):
        y, grad_x, *_ = result_and_gradients(norm, torch.zeros(1, 1, 4), torch.ones(1, 1, 4))
        assert torch.equal(y, torch.zeros(1, 1, 4))
        assert grad_x.isfinite().all()


def test_layer_norm_without_bias_has_one_parameter() -> None:
    assert [name for name, _ in LayerNorm(4, bias=False).named_parameters()] == ["weight"]


def test_no_norm_really_has_no_norm() -> None:
    sizes = {"vocab_size": 7, "block_size": 4, "d_model": 8, "n_layers": 2, "n_heads": 2, "bias": False}
    bare = DecoderTransformer(norm=nn.Identity, **sizes)
    assert not any(name for name, _ in bare.named_parameters() if "norm" in name)
    normed = DecoderTransformer(norm=LayerNorm, **sizes)
    names = {name for name, _ in normed.named_parameters()} - {name for name, _ in bare.named_parameters()}
    assert len(names) == 2 * (2 * 2 + 1)  # gamma and beta: two norms in each of two blocks, and the final one
    with torch.no_grad():
        for block in bare.blocks:  # blocks that add nothing: what is left is the embedding, times itself
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.ffn.fc2.weight)
        tokens_BxT = torch.tensor([[1, 2, 3]])
        x_BxTxD = bare.embedding(tokens_BxT) + bare.position[:3]
        assert torch.equal(bare(tokens_BxT), x_BxTxD @ bare.embedding.weight.T)
