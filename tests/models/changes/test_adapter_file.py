"""Adapter files: a task goes to another process and back; nothing that is not exactly it is taken for it."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.models.changes.made import TOKENS, made, output, stir
from ticks.models.changes import (
    AdapterError,
    TaskHeads,
    attach_ticks,
    chosen_of,
    load_adapter,
    merge,
    parameters_of,
    remove_task,
    save_adapter,
    set_task,
    task_norms,
    tasks_of,
    train_only,
    unmerge,
)

pytest.importorskip("safetensors")
NAMES = ["bert", "llama", "decoder", "gpt2"]


def tuned(name: str) -> torch.nn.Module:
    model = task_norms(attach_ticks(made(name), {0: 3, 1: 5}, scale=4.0, dropout=0.1, task="mine"), task="mine")
    train_only(model, [r"\.tasks\."])
    stir(model, "mine")
    return model


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_written_and_read_beside_the_same_base(name: str, tmp_path: Path) -> None:
    model = tuned(name)
    file = save_adapter(model, tmp_path / "new" / "mine.safetensors")
    again = load_adapter(made(name), file)
    assert torch.equal(output(again), output(model))
    assert tasks_of(again) == ["mine"]
    load_adapter(again, file, task="other")
    assert tasks_of(again) == ["mine", "other"]
    assert torch.equal(output(again), output(model))
    with pytest.raises(AdapterError, match="has a task 'mine' already"):
        load_adapter(again, file)
    assert file.stat().st_size < 30_000
    assert [path.name for path in file.parent.iterdir()] == ["mine.safetensors"]


def test_a_head_that_was_trained_goes_with_it(tmp_path: Path) -> None:
    model = attach_ticks(made("encoder"), 3)
    train_only(model, [r"\.tasks\.", r"^head\."])
    stir(model)
    with torch.no_grad():
        model.head.linear.weight.add_(1.0)
    file = save_adapter(model, tmp_path / "a.safetensors")
    assert torch.equal(output(load_adapter(made("encoder"), file)), output(model))


@pytest.mark.workers
def test_in_a_fresh_process(tmp_path: Path) -> None:
    file = save_adapter(tuned("decoder"), tmp_path / "mine.safetensors")
    torch.save(output(tuned("decoder")), tmp_path / "expected.pt")
    code = (
        "import sys, torch; from tests.models.changes.made import made, output\n"
        "from ticks.models.changes import load_adapter\n"
        f"model = load_adapter(made('decoder'), {str(file)!r})\n"
        f"sys.exit(not torch.equal(output(model), torch.load({str(tmp_path / 'expected.pt')!r})))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_another_base_a_missing_key_a_cut_file_and_a_pickle_are_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = save_adapter(tuned("bert"), tmp_path / "mine.safetensors")
    with safe_open(file, framework="pt") as opened:
        about = dict(opened.metadata())
    tensors = load_file(file)

    def refused(path: Path, reason: str, base: str = "bert", seed: int = 0) -> None:
        model = made(base, seed)
        before, keys = output(model), list(model.state_dict())
        with pytest.raises(AdapterError, match=reason):
            load_adapter(model, path)
        assert list(model.state_dict()) == keys
        assert torch.equal(output(model), before)

    def changed(**metadata: str) -> Path:
        save_file(tensors, tmp_path / "changed.safetensors", about | metadata)
        return tmp_path / "changed.safetensors"

    refused(changed(layout="{"), "it is damaged: what it says of itself cannot be read")
    refused(changed(layout="[]"), "it is damaged")
    refused(
        changed(layout=about["layout"].replace('"scale": 4.0', '"scale": -1.0')), "scale=-1.0 must be a finite number"
    )
    refused(changed(layout=about["layout"].replace('"width": 3', '"width": 300000000')), "not of the width 300000000")
    for said, other in (
        ('"scale": 4.0', '"scalf": 4.0'), ('"dropout"', '"dropou"'), ('"activation": null', '"activation": [1]'),
        ('"bias": true', '"bias": 1'), ('"kind": "norm"', '"kind": "form"'),
    ):  # fmt: skip
        assert said in about["layout"]
        refused(changed(layout=about["layout"].replace(said, other)), "it is damaged")
    refused(changed(task="a.b"), "task='a.b' must be of letters")
    refused(
        file, r"belongs to another base: that of a BertModel with the fingerprint \w{12}; this BertModel has", seed=1
    )
    refused(file, "belongs to another base", base="llama")
    refused(tmp_path / "none.safetensors", "does not exist")
    lost = sorted(tensors)[0]
    save_file({name: t for name, t in tensors.items() if name != lost}, tmp_path / "less.safetensors", about)
    refused(tmp_path / "less.safetensors", f"lacks tensor {lost}".replace(".", r"\."))
    save_file(tensors | {"more": torch.zeros(1)}, tmp_path / "more.safetensors", about)
    refused(tmp_path / "more.safetensors", "has an unknown tensor more")
    save_file(tensors | {lost: torch.zeros(2, 2)}, tmp_path / "shape.safetensors", about)
    refused(tmp_path / "shape.safetensors", r"is \(2, 2\), here it is")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-100])
    refused(tmp_path / "cut.safetensors", "is no whole safetensors file")
    refused(changed(format="7"), "has format 7; this version reads 1")
    save_file(tensors, tmp_path / "foreign.safetensors")
    refused(tmp_path / "foreign.safetensors", "is no adapter of ours: it does not say its format")
    trap = tmp_path / "executed"
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps(Trap(str(trap))))
    refused(tmp_path / "pickle.safetensors", "is no whole safetensors file")
    torch.save(tensors, tmp_path / "torch.safetensors")
    refused(tmp_path / "torch.safetensors", "is no whole safetensors file")
    assert not trap.exists()


class Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return open, (self.path, "w")


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    model = tuned("bert")
    attach_ticks(model, 2, task="second")
    with pytest.raises(AdapterError, match=r"has 2 tasks \(mine, second\): say which"):
        save_adapter(model, tmp_path / "a.safetensors")
    save_adapter(model, tmp_path / "a.safetensors", "second")
    set_task(model, "mine")
    merged = merge(tuned("bert"))
    with pytest.raises(AdapterError, match="the model is merged"):
        save_adapter(merged, tmp_path / "b.safetensors")
    save_adapter(unmerge(merged), tmp_path / "b.safetensors")


def test_a_base_that_trains_has_no_adapter(tmp_path: Path) -> None:
    """Else the fingerprint would be of nothing, and any base would do."""
    model = task_norms(attach_ticks(made("bert"), 3))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in parameters_of(model, "task")
    }
    file = save_adapter(model, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="belongs to another base"):
        load_adapter(made("bert", seed=1), file)
    again = load_adapter(made("bert"), file)
    save_adapter(again, tmp_path / "b.safetensors")
    assert said(tmp_path / "b.safetensors") == said(file)
    model.requires_grad_(True)
    with pytest.raises(AdapterError, match=r"embeddings\.LayerNorm\.weight, beside .*task_norms, trains as well"):
        save_adapter(model, tmp_path / "c.safetensors")
    with pytest.raises(AdapterError, match="has no ticks and no task norms"):
        save_adapter(made("bert"), tmp_path / "c.safetensors")
    with pytest.raises(AdapterError, match="is a folder"):
        save_adapter(again, tmp_path)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a.safetensors", "b.safetensors"]


def said(file: Path) -> tuple[dict[str, str], dict[str, list[float]]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return opened.metadata(), {name: opened.get_tensor(name).tolist() for name in opened.keys()}  # noqa: SIM118


def test_what_the_base_has_besides_does_not_count(tmp_path: Path) -> None:
    """A pooler, say, that is there or not."""
    model = made("bert")
    pooler, model.pooler = model.pooler, None
    stir(attach_ticks(model, 3))
    file = save_adapter(model, tmp_path / "a.safetensors")
    whole = made("bert")
    assert torch.equal(output(load_adapter(whole, file)), output(model))
    assert pooler is not None


def test_a_head_for_each_task_goes_with_it(tmp_path: Path) -> None:
    def with_heads() -> torch.nn.Module:
        model = made("encoder")
        model.head = torch.nn.Identity()
        return torch.nn.ModuleDict({"body": model, "heads": TaskHeads(chosen_of(model), 16)})

    def answers(model: torch.nn.Module) -> torch.Tensor:
        return model["heads"](model["body"].features(TOKENS).mean(1))  # type: ignore[index, operator]

    model = with_heads()
    for seed, (task, n) in enumerate({"a": 2, "b": 4}.items()):
        attach_ticks(model["body"], 2 + n, task=task, scale=n)  # type: ignore[index]
        model["heads"].add(task, n)  # type: ignore[index, operator]
        stir(model, task, seed)
    files = {task: save_adapter(model, tmp_path / f"{task}.safetensors", task) for task in "ab"}
    again = with_heads()
    for file in files.values():
        load_adapter(again, file)
    for task, n in {"a": 2, "b": 4}.items():
        set_task(model, task)
        set_task(again, task)
        assert answers(again).shape == (3, n)
        assert torch.equal(answers(again), answers(model))
    set_task(again, ["b", "a", "b"])
    assert answers(again).shape == (3, 4)
    with pytest.raises(AdapterError, match=r"no TaskHeads at heads|which this .* does not"):
        load_adapter(torch.nn.ModuleDict({"body": with_heads()["body"]}), files["a"])  # type: ignore[index]
    remove_task(again, "a")
    assert tasks_of(again) == ["b"]


def test_a_second_head_in_the_place_of_the_first_is_refused(tmp_path: Path) -> None:
    files = {}
    for task in ("a", "b"):
        model = attach_ticks(made("encoder"), 3, task=task)
        model.head.requires_grad_(True)
        files[task] = save_adapter(model, tmp_path / f"{task}.safetensors")
    model = load_adapter(made("encoder"), files["a"])
    assert all(p.requires_grad for p in model.head.parameters())
    with pytest.raises(AdapterError, match=r"its head\.linear\.bias would take the place of task 'a'"):
        load_adapter(model, files["b"])
    load_adapter(remove_task(model, "a"), files["b"])


def test_layers_that_differ_in_more_than_their_widths(tmp_path: Path) -> None:
    model = attach_ticks(attach_ticks(made("bert"), {0: 3}, scale=2.0), {1: 3}, scale=4.0, activation="relu")
    stir(model)
    file = save_adapter(model, tmp_path / "a.safetensors")
    assert torch.equal(output(load_adapter(made("bert"), file)), output(model))


def test_without_safetensors_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned("decoder")
    file = save_adapter(model, tmp_path / "a.safetensors")
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    for use in (lambda: save_adapter(model, file), lambda: load_adapter(made("decoder"), file)):
        with pytest.raises(AdapterError, match=r'need safetensors: pip install -e "\.\[tuning\]"'):
            use()
