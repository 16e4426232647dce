"""Several tasks on one base: none touches another, and a batch of all of them is what each is by itself."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import run_workers
from tests.models.changes.made import FAMILIES, TOKENS, made, output, stir
from ticks.arguments import ArgumentError
from ticks.models.changes import (
    attach_ticks,
    base,
    digest,
    freeze,
    remove_task,
    set_task,
    task_norms,
    task_set,
    tasks_of,
    train_only,
)
from ticks.models.changes.heads import TaskHeads
from ticks.models.changes.tasks import Chosen, chosen_of

every = pytest.mark.parametrize("name", list(FAMILIES))
WIDTHS = {"a": 3, "b": 5, "c": {1: 2}}


def several(name: str):  # type: ignore[no-untyped-def]
    model = made(name)
    for seed, (task, width) in enumerate(WIDTHS.items()):
        attach_ticks(model, width, task=task, scale=1.0 + seed)  # type: ignore[arg-type]
        if task != "b":
            task_norms(model, task=task)
        stir(model, task, seed)
    return model


@every
def test_a_second_task_leaves_the_first_as_it_was_bit_for_bit(name: str) -> None:
    model = task_norms(attach_ticks(made(name), 3, task="a"), task="a")
    stir(model, "a")
    base, first = output(_with(model, None)), output(_with(model, "a"))
    task_norms(attach_ticks(model, 4, task="b"), task="b")
    assert torch.equal(output(model), base), "a new task begins as the base"
    stir(model, "b")
    assert not torch.equal(output(model), base)
    assert torch.equal(output(_with(model, "a")), first)
    assert torch.equal(output(_with(model, None)), base)
    assert tasks_of(model) == ["a", "b"]
    remove_task(model, "b")
    assert torch.equal(output(model), first)
    remove_task(model, "a")
    assert torch.equal(output(model), base)
    assert tasks_of(model) == []
    assert not [key for key in model.state_dict() if ".tasks." in key]


def _with(model, task):  # type: ignore[no-untyped-def]
    set_task(model, task)
    return model


def test_what_a_mixed_batch_is_of_is_its_tokens_whatever_else_is_given() -> None:
    model: Any = several("bert")
    set_task(model, ["b", "c", "a"])
    places = torch.arange(TOKENS.shape[1])[None]
    found = model(position_ids=places, input_ids=TOKENS).last_hidden_state
    assert torch.equal(found, output(model))


@every
def test_a_mixed_batch_is_each_example_by_itself(name: str) -> None:
    model = several(name)
    names = ["b", "c", "a"]
    alone = []
    for row, task in enumerate(names):
        set_task(model, task)
        alone.append(output(model, slice(row, row + 1)))
    set_task(model, names)
    together = output(model)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-6)
    set_task(model, names[::-1])
    assert not torch.allclose(output(model), together)
    set_task(model, ["b"] * 3)
    assert torch.equal(output(model), output(_with(model, "b")))


def test_gradients_of_a_mixed_batch_reach_each_task_alone() -> None:
    model = several("decoder")
    train_only(model, [r"\.tasks\."])
    set_task(model, ["a", "c", "a"])
    output(model)[1].sum().backward()  # of the example that is c's
    from ticks.models.changes import parameters_of

    touched = {task: any(p.grad is not None and p.grad.abs().sum() > 0 for _, p in parameters_of(model, task))
               for task in WIDTHS}  # fmt: skip
    assert touched == {"a": False, "b": False, "c": True}


def test_a_task_is_set_for_a_block() -> None:
    model = several("decoder")
    set_task(model, "a")
    first = output(model)
    with task_set(model, "b"):
        assert not torch.equal(output(model), first)
    assert torch.equal(output(model), first)


def test_what_is_no_task_is_named() -> None:
    model = several("decoder")
    with pytest.raises(ArgumentError, match=r"task='d' is unknown; known: a, [bc], [bc]"):
        set_task(model, "d")
    with pytest.raises(ArgumentError, match=r"task='d' is unknown; known: a, [bc], [bc]"):
        set_task(model, ["a", "d", "a"])
    set_task(model, ["a", "b"])
    with pytest.raises(ArgumentError, match="must be as many as the 3 examples"):
        output(model)
    with pytest.raises(ArgumentError, match=r"task=\[\] names none; None is the base alone"):
        set_task(model, [])
    set_task(model, "a")
    assert output(model) is not None, "and the norms are themselves again"
    with pytest.raises(ArgumentError, match="task='a' has a norm of its own at"):
        task_norms(model, task="a")


@pytest.mark.parametrize("name", ["bert", "decoder", "llama"])
def test_a_norm_is_itself_again_after_a_mistake(name: str) -> None:
    model = several(name)
    set_task(model, None)
    before = output(model)
    set_task(model, ["a", "b", "c"])
    with pytest.raises(ArgumentError):
        output(model, slice(0, 2))
    set_task(model, None)
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_a_norm_is_itself_again_after_whatever_breaks_off_a_forward(kind: type[BaseException]) -> None:
    """Ctrl-C in a notebook is no Exception."""
    model = task_norms(attach_ticks(made("bert"), 2))
    stir(model)
    before, of_base = output(model), digest(base(model))

    def interrupt(*_: object) -> None:
        raise kind

    norm = model.encoder.layer[1].output.LayerNorm
    plain = type(norm).forward
    for breaks in (
        norm.register_forward_pre_hook(interrupt),
        model.encoder.layer[0].output.dense.register_forward_pre_hook(interrupt),
    ):
        with pytest.raises(kind):
            output(model)
        breaks.remove()
    type(norm).forward = interrupt  # type: ignore[method-assign, assignment]
    try:
        with pytest.raises(kind):
            output(model)
    finally:
        type(norm).forward = plain  # type: ignore[method-assign]
    assert digest(base(model)) == of_base
    assert torch.equal(output(copy.deepcopy(model)), before)
    assert torch.equal(output(model), before)


def test_a_name_that_cannot_be_one_is_refused_before_anything_changes() -> None:
    model = made("bert")
    keys = list(model.state_dict())
    for name in ("sst.2", "keys", "type", "", "training", 3):
        for use in (attach_ticks, task_norms):
            with pytest.raises(ArgumentError, match="must be of letters, digits, - and _"):
                use(model, task=name)  # type: ignore[operator]
    assert list(model.state_dict()) == keys
    assert not model._forward_pre_hooks
    remove_task(attach_ticks(model, 2, task="sst-2"), "sst-2")
    assert not model._forward_pre_hooks
    with pytest.raises(ArgumentError, match="must be a whole number, one for each FFN"):
        attach_ticks(model, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="must be a whole number, one for each FFN"):
        attach_ticks(model, "auto")


def test_parts_that_were_changed_one_by_one_are_one_model() -> None:
    import transformers

    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=30)
    model = transformers.T5Model(config).eval()
    ids = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :5]}
    before = model(**ids).last_hidden_state
    attach_ticks(model.encoder, 3)
    attach_ticks(model.decoder, 3)
    stir(model)
    changed = model(**ids).last_hidden_state
    assert not torch.allclose(changed, before)
    set_task(model, None)
    torch.testing.assert_close(model(**ids).last_hidden_state, before)
    set_task(model, "task")
    assert torch.equal(model(**ids).last_hidden_state, changed)
    task_norms(attach_ticks(model, 2, task="b"), task="b")
    stir(model, "b")
    set_task(model, ["b", "task", "b"])
    mixed = model(**ids).last_hidden_state
    torch.testing.assert_close(mixed[1:2], changed[1:2], rtol=1e-5, atol=1e-5)


def test_a_norm_of_what_is_no_example_cannot_be_mixed() -> None:
    """As DeBERTa's, of its relative positions: 0 would have been taken from one task and 3 from another."""

    class Relative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.norm = nn.Parameter(torch.randn(6, 4)), nn.LayerNorm(4)
            self.embedding = nn.Embedding(30, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.embedding(x) + self.norm(self.positions).mean(0)

    model = task_norms(task_norms(Relative(), task="a"), task="b")
    set_task(model, ["a", "b", "a"])
    with pytest.raises(ArgumentError, match="are not the 6 rows that a norm sees: compute one task after the other"):
        model(TOKENS)


def test_each_example_has_its_own_tasks_dropout() -> None:
    model = attach_ticks(attach_ticks(made("decoder"), 200, task="a"), 200, task="b", dropout=0.9)
    ticks = next(m for m in model.modules() if hasattr(m, "_kept"))
    torch.manual_seed(0)
    kept = ticks._kept(torch.ones(2, 50, 200), torch.tensor([0.0, 0.9]))
    assert torch.equal(kept[0], torch.ones(50, 200))
    assert float((kept[1] > 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float(kept[1].mean()) == pytest.approx(1.0, abs=0.1)
    stir(model, "a")
    stir(model, "b")
    model.train()
    set_task(model, ["a", "b", "a"])
    one, two = output(model), output(model)
    assert torch.equal(one[[0, 2]], two[[0, 2]])
    assert not torch.equal(one[1], two[1])


@pytest.mark.workers
def test_compiled_it_computes_the_same() -> None:
    run_workers(1, compute_the_same)  # what compiles leaves threads behind


def compute_the_same() -> None:
    for name in ("bert", "decoder"):
        model = several(name)
        for task in ("a", ["a", "b", "c"]):
            set_task(model, task)
            expected = output(model)
            found = torch.compile(model, backend="eager")(TOKENS)
            found = found if isinstance(found, torch.Tensor) else found.last_hidden_state
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            torch._dynamo.reset()


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5"])
def test_a_base_in_16_bits_has_components_in_32(name: str) -> None:
    model = freeze(made(name).to(torch.bfloat16))
    before = output(model)
    for task in ("a", "b"):
        task_norms(attach_ticks(model, 3, task=task), task=task)
    assert torch.equal(output(model), before)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    stir(model, "a")
    set_task(model, "a")
    alone = output(model)
    assert alone.dtype == torch.bfloat16
    set_task(model, ["a", "b", "a"])
    mixed = output(model)
    torch.testing.assert_close(mixed[[0, 2]], alone[[0, 2]], rtol=0.05, atol=0.1)
    mixed.float().sum().backward()


def test_heads_of_several_tasks() -> None:
    chosen = Chosen()
    heads = TaskHeads(chosen, 4, {"a": 2, "b": 3})
    x = torch.randn(3, 4)
    chosen.name = "a"
    a = heads(x)
    chosen.name = "b"
    b = heads(x)
    assert a.shape == (3, 2)
    assert b.shape == (3, 3)
    chosen.name, chosen.names = None, ("a", "b", "a")
    mixed = heads(x)
    torch.testing.assert_close(mixed[0, :2], a[0])
    torch.testing.assert_close(mixed[1], b[1])
    assert mixed[[0, 2], 2].tolist() == [-torch.inf] * 2
    chosen.names = ("a", "x", "a")
    with pytest.raises(ArgumentError, match="task='x' has no head; known: a, b"):
        heads(x)
    chosen.name, chosen.names = None, None
    with pytest.raises(ArgumentError, match="task=None has no head"):
        heads(x)


def test_a_body_that_was_taken_out_of_a_model_is_looked_at_in_another_one_and_can_be_copied() -> None:
    class Around(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return output(self.body, x)

    whole = Around(made("bert"))
    for task in ("a", "b"):
        attach_ticks(whole, 2, task=task)
    body = whole.body
    del whole
    other = Around(body)
    again = copy.deepcopy(other)
    for model in (other, again, copy.deepcopy(again)):
        set_task(model, ["a", "b"])
        with pytest.raises(ArgumentError, match="must be as many as the 3 examples"):
            model(TOKENS[:1].repeat(3, 1))
    remove_task(remove_task(again, "a"), "b")
    assert not any(module._forward_pre_hooks for module in again.modules())


def test_what_is_chosen_is_one_for_the_whole_model() -> None:
    model = several("bert")
    assert len({id(module.chosen) for module in model.modules() if hasattr(module, "chosen")}) == 1
    assert chosen_of(model).name == "c"
