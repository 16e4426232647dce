"""`model.compile`: any model, in place, with the checkpoints it has uncompiled."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.config.test_config import TINY, checked
from tests.conftest import only_run, run_command
from ticks.assemble import parts
from ticks.config import ConfigError


def made(*overrides: str) -> Any:
    torch.manual_seed(0)
    return parts(checked(*overrides), {}).task


@pytest.mark.parametrize("model", ["ln_ticks", "rms", "no_norm"])
def test_a_compiled_model_has_the_same_checkpoint_and_computes_the_same(model: str) -> None:
    plain, compiled = (made(*TINY, f"model={model}", f"model.compile={how}") for how in ("false", "eager"))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    x = torch.randint(256, (2, 8))
    losses = [task.loss({"x": x, "y": x}) for task in (plain, compiled)]
    assert torch.allclose(*losses)
    for loss in losses:
        loss.backward()
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert compiled.model._compiled_call_impl is not None
    assert plain.model._compiled_call_impl is None


def test_a_run_that_was_compiled_goes_on_without(tmp_path: Path) -> None:
    tiny = [
        *TINY,
        "debug=fast",
        "model=ln",
        "model.compile=eager",
        "callbacks=none",
        "task.sample_bytes=0",
        "trainer.devices=1",
    ]
    assert run_command(tmp_path, *tiny, "trainer.max_steps=2")[0] == 0
    run = only_run(tmp_path)
    code, output = run_command(tmp_path, f"resume={run}", "model.compile=false", "trainer.max_steps=4")
    assert code == 0, output


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("inductr", "model.compile=inductr must be true, false or a backend: "),
        ("3", "model.compile=3 must be true, false or the name of a backend"),
        ("null", "model.compile=None must be true, false or the name of a backend"),
    ],
)
def test_what_cannot_compile_is_one_message(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(*TINY, f"model.compile={value}")


def test_without_a_compiler_it_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"model\.compile=true needs a C\+\+ compiler"):
        made(*TINY, "model.compile=true")
