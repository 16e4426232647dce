"""`model.compile`: any model, in place, with the checkpoints it has uncompiled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.config.test_config import TINY, checked
from tests.conftest import only_run, run_command
from ticks.assemble import parts
from ticks.config import ConfigError
from ticks.models import (
    DecoderTransformer,
    EncoderClassifier,
    EncoderDecoder,
    Mlp,
    RecurrentLanguageModel,
    RMSNorm,
    TicksAdapter,
    VisionTransformer,
)


def made(*overrides: str) -> Any:
    torch.manual_seed(0)
    return parts(checked(*overrides), {}).task


BYTES: dict[str, Any] = {"vocab_size": 9, "block_size": 6}
SMALL: dict[str, Any] = {"d_model": 8, "n_layers": 2, "n_heads": 2}
TOKENS = torch.randint(1, 9, (2, 6), generator=torch.Generator().manual_seed(0))
PIXELS = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
PAIRS: dict[str, Any] = {"source_vocab_size": 9, "target_vocab_size": 9, "source_length": 6, "target_length": 6}
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    "decoder": (lambda: DecoderTransformer(**BYTES, **SMALL), (TOKENS,)),
    "ticks": (lambda: DecoderTransformer(**BYTES, norm=RMSNorm, adapter=TicksAdapter, **SMALL), (TOKENS,)),
    "encoder": (lambda: EncoderClassifier(**BYTES, n_classes=3, **SMALL), (TOKENS,)),
    "encoder_decoder": (lambda: EncoderDecoder(**PAIRS, **SMALL), (TOKENS, TOKENS)),
    "vit": (lambda: VisionTransformer(image_size=(4, 4), n_channels=1, n_classes=3, patch_size=2, **SMALL), (PIXELS,)),
    "mlp": (lambda: Mlp(n_features=16, n_classes=3), (PIXELS,)),
    "gru": (lambda: RecurrentLanguageModel(**BYTES, d_model=8, n_layers=2), (TOKENS,)),
    "lstm": (lambda: RecurrentLanguageModel(**BYTES, d_model=8, cell="lstm"), (TOKENS,)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MODELS))
def test_a_compiled_model_has_the_same_checkpoint_and_computes_the_same(name: str) -> None:
    make, inputs = MODELS[name]
    graphs = []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    models = []
    for compiled in (False, True):
        torch.manual_seed(0)
        models.append(make())
        if compiled:
            models[-1].compile(backend=backend)
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    outputs = [model(*inputs) for model in models]
    assert torch.allclose(*outputs, atol=1e-6)
    for output in outputs:
        output.square().sum().backward()
    for theirs, ours in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)
    assert graphs
    assert max(len(graph.graph.nodes) for graph in graphs) < (60 if name in ("gru", "lstm") else 1000)


def test_the_command_lines_model_is_compiled_in_place() -> None:
    plain, compiled = (made(*TINY, "model=ln_ticks", f"model.compile={how}") for how in ("false", "eager"))
    assert list(compiled.state_dict()) == list(plain.state_dict())
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
