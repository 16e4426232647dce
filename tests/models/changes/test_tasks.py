"""Several tasks on one base: none touches another, and a batch of all of them is what each is by itself."""

import pytest
import torch

from tests.models.changes.made import FAMILIES, made, output, stir
from ticks.arguments import ArgumentError
from ticks.models.changes import attach_ticks, remove_task, set_task, task_norms, task_set, tasks_of
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
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    set_task(model, names[::-1])
    assert not torch.allclose(output(model), together)
    set_task(model, ["b"] * 3)
    assert torch.equal(output(model), output(_with(model, "b")))


def test_gradients_of_a_mixed_batch_reach_each_task_alone() -> None:
    model = several("decoder")
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


def test_what_is_chosen_is_one_for_the_whole_model() -> None:
    model = several("bert")
    assert len({id(module.chosen) for module in model.modules() if hasattr(module, "chosen")}) == 1
    assert chosen_of(model).name == "c"
