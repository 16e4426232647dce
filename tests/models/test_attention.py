"""Causal attention and rotary positions."""

import math

import pytest
import torch

from ticks.models import CrossAttention, SelfAttention
from ticks.models.attention import Past, rotate


@pytest.mark.parametrize("rotary", [False, True])
def test_attention_equals_the_formula(rotary: bool) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(8, 2, causal=True, rotary=rotary)
    x_TxD = torch.randn(5, 8)
    q, k, v = (part.view(5, 2, 4).transpose(0, 1) for part in attention.qkv(x_TxD).split(8, dim=-1))
    if rotary:
        q, k = rotate(q), rotate(k)
    scores_HxTxT = q @ k.transpose(1, 2) / math.sqrt(4)
    scores_HxTxT = scores_HxTxT.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    y_TxD = attention.out((scores_HxTxT.softmax(-1) @ v).transpose(0, 1).reshape(5, 8))
    assert torch.allclose(attention(x_TxD[None])[0], y_TxD, atol=1e-6)


@pytest.mark.parametrize("rotary", [False, True])
def test_a_later_token_changes_nothing_before_it(rotary: bool) -> None:
    attention = SelfAttention(8, 2, causal=True, rotary=rotary)
    x_BxTxD = torch.randn(1, 6, 8)
    for t in range(6):
        changed = x_BxTxD.clone()
        changed[:, t] += 1.0
        before, after = attention(x_BxTxD)[0], attention(changed)[0]
        assert torch.equal(before[:t], after[:t])
        assert not torch.allclose(before[t], after[t])


def test_rotary_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q_K, k_K = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    q_TxK, k_TxK = (rotate(row.expand(1, 1, 20, 8))[0, 0] for row in (q_K, k_K))
    scores_TxT = q_TxK @ k_TxK.T
    for distance in (-7, 0, 1, 5):
        same = scores_TxT.diagonal(distance)
        assert torch.allclose(same, same[0].expand_as(same), atol=1e-5)
    assert not torch.allclose(scores_TxT.diagonal(1)[0], scores_TxT.diagonal(5)[0], atol=1e-3)


def test_rotary_turns_but_does_not_stretch_and_leaves_position_zero() -> None:
    x_BxHxTxK = torch.randn(2, 3, 10, 8)
    turned = rotate(x_BxHxTxK)
    assert torch.allclose(turned.norm(dim=-1), x_BxHxTxK.norm(dim=-1), atol=1e-5)
    assert torch.equal(turned[:, :, 0], x_BxHxTxK[:, :, 0])
    assert not torch.allclose(turned[:, :, 1], x_BxHxTxK[:, :, 1])


def test_rotary_turns_the_first_pair_by_one_radian_per_position() -> None:
    x_BxHxTxK = torch.tensor([1.0, 0.0]).expand(1, 1, 4, 2)
    expected_TxK = torch.tensor([[math.cos(t), math.sin(t)] for t in range(4)])
    assert torch.allclose(rotate(x_BxHxTxK)[0, 0], expected_TxK, atol=1e-6)


def test_attention_without_positions_does_not_see_the_order() -> None:
    attention = SelfAttention(8, 2, causal=True)
    x_BxTxD = torch.randn(1, 5, 8)
    swapped = x_BxTxD[:, [1, 0, 2, 3, 4]]
    assert torch.allclose(attention(x_BxTxD)[:, 2:], attention(swapped)[:, 2:], atol=1e-6)
    rotary = SelfAttention(8, 2, causal=True, rotary=True)
    assert not torch.allclose(rotary(x_BxTxD)[:, 2:], rotary(swapped)[:, 2:], atol=1e-6)


def test_dropout_is_for_training_only() -> None:
    attention = SelfAttention(8, 2, causal=True, dropout=0.5)
    x_BxTxD = torch.randn(1, 5, 8)
    assert not torch.equal(attention(x_BxTxD), attention(x_BxTxD))
    attention.eval()
    assert torch.equal(attention(x_BxTxD), attention(x_BxTxD))


@pytest.mark.parametrize("n_heads", [0, -2, 3])
def test_heads_that_do_not_divide_the_width_are_refused(n_heads: int) -> None:
    with pytest.raises(ValueError, match=f"n_heads={n_heads} must divide d_model=8"):
        SelfAttention(8, n_heads)


def test_rotary_positions_need_an_even_head_width() -> None:
    with pytest.raises(ValueError, match="n_heads=2 with rotary positions d_model=6 / n_heads must be even"):
        SelfAttention(6, 2, rotary=True)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(K)) v over what is seen (B, T, S), each (B, H, T, K)."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_every_position_sees_what_it_may(causal: bool, padded: bool) -> None:
    torch.manual_seed(0)
    attention, x_BxTxD = SelfAttention(8, 2, causal=causal), torch.randn(2, 5, 8)
    present = torch.tensor([[True] * 5, [True, True, True, False, False]])
    seen = torch.ones(2, 5, 5, dtype=torch.bool)
    seen = seen.tril() if causal else seen
    seen = seen & present[:, None] if padded else seen
    q, k, v = attention.qkv(x_BxTxD).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = attention.out(reference(q, k, v, seen).transpose(1, 2).reshape(2, 5, 8))
    assert torch.allclose(attention(x_BxTxD, present if padded else None), expected, atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_cross_attention_sees_the_other_sequence(padded: bool) -> None:
    torch.manual_seed(0)
    attention, x_BxTxD, memory_BxSxD = CrossAttention(8, 2), torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    present = torch.tensor([[True] * 4, [True, True, False, False]])
    seen = present[:, None].expand(2, 3, 4) if padded else torch.ones(2, 3, 4, dtype=torch.bool)
    q = attention.query(x_BxTxD).view(2, 3, 2, 4).transpose(1, 2)
    k, v = attention.key_value(memory_BxSxD).view(2, 4, 2, 2, 4).permute(2, 0, 3, 1, 4)
    expected = attention.out(reference(q, k, v, seen).transpose(1, 2).reshape(2, 3, 8))
    assert torch.allclose(attention(x_BxTxD, memory_BxSxD, present if padded else None), expected, atol=1e-6)


@pytest.mark.parametrize("rotary", [False, True])
def test_position_by_position_it_sees_what_the_whole_sequence_shows_it(rotary: bool) -> None:
    torch.manual_seed(0)
    attention, x_BxTxD, past = SelfAttention(8, 2, causal=True, rotary=rotary), torch.randn(2, 7, 8), Past()
    whole = attention(x_BxTxD)
    assert torch.allclose(attention(x_BxTxD[:, :3], past=past), whole[:, :3], atol=1e-6)
    for t in range(3, 7):
        assert torch.allclose(attention(x_BxTxD[:, t : t + 1], past=past), whole[:, t : t + 1], atol=1e-6)
    assert len(past) == 7


def test_rotations_are_the_same_wherever_a_sequence_begins() -> None:
    x_BxHxTxK = torch.randn(1, 1, 9, 6)
    for start in (1, 3, 8):
        assert torch.allclose(rotate(x_BxHxTxK[:, :, start:], start=start), rotate(x_BxHxTxK)[:, :, start:], atol=1e-6)


def test_another_sequence_is_looked_at_once() -> None:
    attention, x_BxTxD, past = CrossAttention(8, 2), torch.randn(2, 1, 8), Past()
    first = attention(x_BxTxD, torch.randn(2, 4, 8), past=past)
    assert torch.equal(attention(x_BxTxD, torch.zeros(2, 4, 8), past=past), first)
    past.select(torch.tensor([1]))
    assert torch.allclose(attention(x_BxTxD[1:], torch.zeros(1, 4, 8), past=past), first[1:], atol=1e-6)
