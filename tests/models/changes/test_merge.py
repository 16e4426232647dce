"""Merged ticks are hidden units: the same function, in the base's own format, and out again bit for bit."""

from pathlib import Path

import pytest
import torch

from tests.models.changes.made import FAMILIES, THEIRS, made, output, stir
from ticks.arguments import ArgumentError
from ticks.models.changes import (
    AdapterError,
    CannotMerge,
    attach_ticks,
    base,
    digest,
    load_adapter,
    merge,
    remove_task,
    save_adapter,
    set_task,
    task_norms,
    tasks_of,
    unmerge,
)

NO_PLACE = {"qwen2", "gemma", "t5_1.1"}  # GLUs whose formats have no bias
PLAIN = {"t5"}  # no bias, and none needed where ticks have none
MERGED = [name for name in FAMILIES if name not in NO_PLACE]


def changed(name: str, width: object = 3) -> torch.nn.Module:
    if name == "dinov2":  # whose format has whole multiples of d_model alone
        width = {1: 16} if isinstance(width, dict) else 16
    model = task_norms(attach_ticks(made(name), width, scale=3.0, bias=name not in PLAIN))  # type: ignore[arg-type]
    stir(model)
    return model


@pytest.mark.parametrize(("name", "width"), [*((name, 3) for name in MERGED), ("gpt2", 16), ("bert", 16)])
def test_it_is_the_same_function_and_comes_apart_again(name: str, width: int) -> None:
    """Also with as many units as features, where a matrix and its transpose have one shape."""
    model = changed(name, width)
    tensors, before = digest(base(model)), output(model)
    own = {key: value.clone() for key, value in model.state_dict().items()}
    merge(model)
    assert not [key for key in model.state_dict() if "tasks" in key]
    torch.testing.assert_close(output(model), before, rtol=2e-5, atol=2e-5)
    unmerge(model)
    assert digest(base(model)) == tensors
    assert torch.equal(output(model), before)
    assert {key: value.tolist() for key, value in model.state_dict().items()} == {
        key: value.tolist() for key, value in own.items()
    }


@pytest.mark.parametrize("name", ["decoder", "bert", "llama"])
def test_in_double_precision_it_is_exact_to_the_last_digits(name: str) -> None:
    model = changed(name).double()
    before = output(model)
    torch.testing.assert_close(output(merge(model)), before, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in MERGED if name in THEIRS])
def test_it_is_written_in_the_bases_own_format(name: str, tmp_path: Path) -> None:
    """Layers with ticks of different widths, and one with none."""
    import transformers

    model = changed(name, {1: 5})
    before = output(model)
    merge(model).save_pretrained(tmp_path)
    kind = transformers.T5EncoderModel if name == "t5" else transformers.AutoModel
    again = kind.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(output(again), before, rtol=2e-5, atol=2e-5)
    unmerge(model)
    assert torch.equal(output(model), before)
    model.save_pretrained(tmp_path / "base", state_dict=base(model))
    kind.from_pretrained(tmp_path / "base")


@pytest.mark.parametrize("name", sorted(NO_PLACE))
def test_a_glu_without_a_place_for_a_bias_is_refused(name: str) -> None:
    model = changed(name)
    before = output(model)
    with pytest.raises(CannotMerge, match="have no bias, and this model's format has no place for one: a GLU's ticks"):
        merge(model)
    assert torch.equal(output(model), before)


def test_what_cannot_be_exact_is_refused_with_the_reason_and_nothing_is_changed() -> None:
    def refused(model: torch.nn.Module, reason: str) -> None:
        before, keys = output(model), list(model.state_dict())
        with pytest.raises(CannotMerge, match=reason):
            merge(model)
        assert torch.equal(output(model), before)
        assert list(model.state_dict()) == keys

    other = attach_ticks(made("bert"), 3, activation="relu")
    stir(other)
    refused(other, "another activation than the FFN")
    refused(attach_ticks(made("dinov2"), 3), "has no word for 35 hidden units: only multiples of 16")
    refused(attach_ticks(made("t5"), 3), r"attach_ticks\(bias=False\) needs none")
    two = attach_ticks(attach_ticks(made("bert"), 3, task="a"), 3, task="b")
    refused(two, r"components of 2 tasks: .*remove_task\(model, 'b'\)")
    with pytest.raises(CannotMerge, match="components of 2 tasks"):
        merge(two, "b")
    merge(remove_task(two, "b"))
    with pytest.raises(CannotMerge, match="merged already"):
        merge(two)
    quantised = attach_ticks(made("decoder"), 3)
    weight = quantised.blocks[0].ffn.fc1.weight  # type: ignore[index, union-attr]
    whole = torch.nn.Parameter(weight.detach().round().to(torch.int8), requires_grad=False)
    quantised.blocks[0].ffn.fc1.weight = whole  # type: ignore[index, union-attr]
    with pytest.raises(CannotMerge, match=r"blocks\.0\.ffn is quantised \(torch.int8\)"):
        merge(quantised)
    with pytest.raises(ArgumentError, match="has no ticks and no task norms"):
        merge(made("bert"))
    with pytest.raises(ArgumentError, match="is not merged"):
        unmerge(made("bert"))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "decoder"])
def test_a_base_in_16_bits_stays_one(name: str) -> None:
    model = changed(name).to(torch.bfloat16)
    for parameter in [p for key, p in model.named_parameters() if "tasks" in key]:
        parameter.data = parameter.data.float()
    before = output(model)
    assert {p.dtype for p in merge(model).parameters()} == {torch.bfloat16}
    torch.testing.assert_close(output(model), before, rtol=0.1, atol=0.1)


def test_a_merged_model_takes_no_other_task(tmp_path: Path) -> None:
    model = merge(changed("bert"))
    before = output(model)
    for attach in (lambda: attach_ticks(model, 3, task="b"), lambda: task_norms(model, task="b"),
                   lambda: attach_ticks(torch.nn.Sequential(model), 3, task="b")):  # fmt: skip
        with pytest.raises(ArgumentError, match=r"is merged: unmerge\(model\) first, or save and load it"):
            attach()
    save_adapter(attach_ticks(made("bert"), 3, task="b"), tmp_path / "b.safetensors")
    with pytest.raises(AdapterError, match="is merged"):
        load_adapter(model, tmp_path / "b.safetensors")
    assert torch.equal(output(model), before)
    assert tasks_of(unmerge(model)) == ["task"]


def test_norms_alone_are_merged() -> None:
    model = task_norms(made("bert"))
    stir(model)
    before = output(model)
    assert torch.equal(output(merge(model)), before)
    assert torch.equal(output(unmerge(model)), before)
    set_task(model, None)
    assert not torch.equal(output(model), before)


def test_a_model_within_another_one_has_its_configuration_changed(tmp_path: Path) -> None:
    import transformers

    whole = torch.nn.Sequential(changed("bert"))
    merge(whole)
    whole[0].save_pretrained(tmp_path)
    torch.testing.assert_close(
        output(transformers.AutoModel.from_pretrained(tmp_path).eval()), output(whole[0]), rtol=2e-5, atol=2e-5
    )
    unmerge(whole)
    assert whole[0].config.intermediate_size == 24
