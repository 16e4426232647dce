"""Adapter files: a task goes to another process and back; nothing that is not exactly it is taken for it."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.models.changes.made import made, output, stir
from ticks.models.changes import (
    AdapterError,
    attach_ticks,
    load_adapter,
    merge,
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
    refused(tmp_path / "foreign.safetensors", "is no adapter of ours: it does not say its base")
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


def test_without_safetensors_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned("decoder")
    file = save_adapter(model, tmp_path / "a.safetensors")
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    for use in (lambda: save_adapter(model, file), lambda: load_adapter(made("decoder"), file)):
        with pytest.raises(AdapterError, match=r'need safetensors: pip install -e "\.\[tuning\]"'):
            use()
