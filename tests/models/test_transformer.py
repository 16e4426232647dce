"""The decoder: causal, tied, deterministic where it should be."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ticks.models import DecoderTransformer, FeedForward

SIZES = {"vocab_size": 11, "block_size": 6, "d_model": 8, "n_layers": 2, "n_heads": 2}


def model(**options) -> DecoderTransformer:
    torch.manual_seed(0)
    return DecoderTransformer(**SIZES | options)


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_changing_a_token_changes_no_logits_before_it(position: str) -> None:
    decoder = model(position=position)
    tokens_BxT = torch.randint(11, (1, 6))
    for t in range(6):
        changed = tokens_BxT.clone()
        changed[0, t] = (changed[0, t] + 1) % 11
        before, after = decoder(tokens_BxT)[0], decoder(changed)[0]
        assert torch.equal(before[:t], after[:t])
        assert not torch.equal(before[t:], after[t:])


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_the_model_knows_the_order_of_its_tokens(position: str) -> None:
    decoder = model(position=position, n_layers=1)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter)
    first, swapped = decoder(torch.tensor([[1, 2, 3]])), decoder(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(first[0, 2], swapped[0, 2], atol=1e-3)


def test_the_embedding_is_tied_and_gets_gradient_from_both_uses() -> None:
    decoder = model()
    assert [n for n, p in decoder.named_parameters() if 11 in p.shape] == ["embedding.weight"]  # one tensor
    decoder(torch.tensor([[3]])).flatten()[7].backward()  # token 3 goes in, the logit of token 7 comes out
    rows = decoder.embedding.weight.grad.any(dim=1).nonzero().flatten().tolist()
    assert rows == [3, 7]


def test_logits_are_the_final_norm_times_the_embedding() -> None:
    decoder, seen = model(), {}
    decoder.final_norm.register_forward_hook(lambda module, args, y: seen.update(y=y))
    logits_BxTxV = decoder(torch.randint(11, (2, 4)))
    assert logits_BxTxV.shape == (2, 4, 11)
    assert torch.equal(logits_BxTxV, seen["y"] @ decoder.embedding.weight.T)


def test_blocks_are_pre_norm() -> None:
    block = model().blocks[0]
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x_BxTxD = torch.randn(2, 4, 8)
    h_BxTxD = x_BxTxD + block.attention(block.norm1(x_BxTxD))
    assert torch.allclose(block(x_BxTxD), h_BxTxD + block.ffn(block.norm2(h_BxTxD)), atol=1e-6)


def test_the_first_loss_is_that_of_guessing() -> None:
    decoder = model(vocab_size=256, block_size=64, d_model=64)
    tokens_BxT = torch.randint(256, (4, 64))
    loss = F.cross_entropy(decoder(tokens_BxT).flatten(0, 1), torch.randint(256, (4 * 64,)))
    assert abs(loss.item() - math.log(256)) < 0.1


def test_projections_into_the_residual_stream_start_smaller() -> None:
    decoder = model(d_model=64, n_layers=8)
    for block in decoder.blocks:
        for module in (block.attention.out, block.ffn.fc2):
            assert abs(module.weight.std().item() / (0.02 / math.sqrt(16)) - 1) < 0.1
        for module in (block.attention.qkv, block.ffn.fc1):
            assert abs(module.weight.std().item() / 0.02 - 1) < 0.1
            assert not module.bias.any()


def test_the_same_seed_gives_the_same_model_and_another_does_not() -> None:
    first, again = model().state_dict(), model().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    torch.manual_seed(1)
    other = DecoderTransformer(**SIZES).state_dict()
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_a_small_model_learns_a_repeating_text() -> None:
    decoder = model(position="rotary", block_size=16)
    tokens_BxT = (torch.arange(17) % 5).expand(4, 17)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(decoder(tokens_BxT[:, :-1]).flatten(0, 1), tokens_BxT[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    continued = decoder.generate(torch.tensor([[0, 1, 2, 3, 4]]), 10, temperature=0)
    assert continued[0].tolist() == [t % 5 for t in range(15)]


def test_generate_at_temperature_zero_is_deterministic_and_takes_the_likeliest() -> None:
    decoder = model()
    prompt_BxT = torch.randint(11, (2, 3))
    first, again = (decoder.generate(prompt_BxT, 5, temperature=0) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (2, 8)
    assert torch.equal(first[:, :3], prompt_BxT)
    assert torch.equal(first[:, 3], decoder(prompt_BxT)[:, -1].argmax(-1))


def test_generate_cuts_the_context_to_the_block_size() -> None:
    decoder = model()  # learned positions: a longer context would be an error
    long_1xT = torch.randint(11, (1, 20))
    from_long = decoder.generate(long_1xT, 4, temperature=0)
    from_short = decoder.generate(long_1xT[:, -6:], 4, temperature=0)
    assert from_long.shape == (1, 24)
    assert torch.equal(from_long[:, 20:], from_short[:, 6:])


def test_sampling_follows_its_generator() -> None:
    decoder = model()
    prompt_BxT = torch.randint(11, (1, 3))

    def sample(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return decoder.generate(prompt_BxT, 30, temperature=1.0, generator=generator)[0].tolist()

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


def test_generate_keeps_no_gradient() -> None:
    assert not model().generate(torch.tensor([[1]]), 2, temperature=0).requires_grad


def test_the_ffn_is_four_times_as_wide_unless_told() -> None:
    assert model().blocks[0].ffn.fc1.weight.shape == (32, 8)
    assert model(d_ff=12).blocks[0].ffn.fc1.weight.shape == (12, 8)


def test_bias_false_leaves_no_bias_in_any_linear_layer() -> None:
    assert not [n for n, p in model(bias=False).named_parameters() if n.endswith("bias") and "norm" not in n]


def test_dropout_is_for_training_only() -> None:
    decoder = model(dropout=0.5)
    tokens_BxT = torch.randint(11, (1, 6))
    assert not torch.equal(decoder(tokens_BxT), decoder(tokens_BxT))
    decoder.eval()
    assert torch.equal(decoder(tokens_BxT), decoder(tokens_BxT))


@pytest.mark.parametrize(("activation", "function"), [("gelu", F.gelu), ("relu", F.relu), ("silu", F.silu)])
def test_the_ffn_uses_the_named_activation(activation: str, function) -> None:
    ffn, x_NxD = FeedForward(4, 8, activation=activation), torch.randn(3, 4)
    assert torch.equal(ffn(x_NxD), ffn.fc2(function(ffn.fc1(x_NxD))))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 must divide d_model=8"),
        ({"activation": "swish"}, "activation='swish' is unknown; known: gelu, relu, silu"),
        ({"position": "sine"}, "position='sine' is unknown; known: learned, sinusoidal, rotary"),
        ({"block_size": 0}, "block_size=0 must be at least 1"),
        ({"n_layers": 0}, "n_layers=0 must be at least 1"),
        ({"d_model": 0}, "d_model=0 must be at least 1"),
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**wrong)
