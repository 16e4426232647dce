"""Parameter groups: which decay, at which rate, by name; and what Lightning is told."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ticks.arguments import ArgumentError
from ticks.models import DecoderTransformer, EncoderClassifier, Mlp, VisionTransformer
from ticks.optim import Muon, Rule, WarmupCosine, adamw, configure, grouped


def decoder() -> DecoderTransformer:
    return DecoderTransformer(vocab_size=11, block_size=4, d_model=8, n_layers=1, n_heads=2)


def names_in(module: nn.Module, group: dict[str, Any]) -> set[str]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(p)] for p in group["params"]}


def test_vectors_do_not_decay_and_matrices_do() -> None:
    model = decoder()
    decay, no_decay = adamw(grouped(model), weight_decay=0.5).param_groups
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.5, 0.0)
    assert all(p.ndim == 2 for p in decay["params"])
    all_names = {name for name, _ in model.named_parameters()}
    assert names_in(model, no_decay) == {n for n in all_names if "norm" in n or n.endswith("bias")}
    assert names_in(model, decay) | names_in(model, no_decay) == all_names


def test_matrices_are_hidden_ones_and_lead_neither_in_nor_out() -> None:
    models = {
        "encoder": EncoderClassifier(vocab_size=9, block_size=4, n_classes=3, d_model=8, n_layers=1, n_heads=2),
        "vit": VisionTransformer(
            image_size=(4, 4), n_channels=1, n_classes=3, patch_size=2, d_model=8, n_layers=1, n_heads=2
        ),
        "mlp": Mlp(n_features=5, n_classes=3, d_model=8),
    }
    block = {f"blocks.0.{part}.weight" for part in ("attention.qkv", "attention.out", "ffn.fc1", "ffn.fc2")}
    expected = {"encoder": block, "vit": block, "mlp": {"fc1.weight"}}
    for name, model in models.items():
        groups = grouped(model, matrices=True)
        assert set().union(*(names_in(model, g) for g in groups if g.get("matrices"))) == expected[name], name


def test_a_factor_of_a_rate_that_cannot_be_read_is_refused() -> None:
    module = pl.LightningModule()
    module.layer = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match=r"lr_factor=.given. needs an optimizer whose lr can be read"):
        configure(module, lambda groups: adamw(groups, lr=0.1), None, [Rule("bias", lr_factor=10.0)])


def test_frozen_parameters_are_there_for_when_they_thaw_and_do_not_move_before() -> None:
    layer = nn.Linear(3, 3)
    layer.weight.requires_grad_(False)
    optimizer = adamw(grouped(layer), lr=0.1, weight_decay=0.5)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    before = layer.weight.clone()
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before)
    layer.weight.requires_grad_(True)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


def test_the_first_rule_that_matches_a_name_counts() -> None:
    model = decoder()
    rules = [Rule("attention", lr_factor=0.5), {"match": "blocks.*bias|norm", "weight_decay": 0.3, "lr_factor": 2.0}]
    groups = grouped(model, rules, lr=0.1)
    found = {name: (g.get("lr"), g.get("weight_decay")) for g in groups for name in names_in(model, g)}
    assert found["blocks.0.attention.qkv.weight"] == (0.05, None)
    assert found["blocks.0.attention.qkv.bias"] == (0.05, 0.0)
    assert found["blocks.0.ffn.fc1.bias"] == found["blocks.0.norm1.weight"] == (0.2, 0.3)
    assert found["embedding.weight"] == (None, None)
    assert len(found) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "nowhere"}, r"\['nowhere'\] match no parameter"),
        ({"match": "("}, r"match='\(' is no regular expression"),
        ({"match": "norm", "lr_factor": -1.0}, "lr_factor=-1.0 must not be negative"),
        ({"match": "norm", "optional": 5}, "optional=5 must be true or false"),
    ],
)
def test_a_rule_that_means_nothing_is_named(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grouped(decoder(), [rule])


def test_matrices_are_told_apart_for_an_optimizer_that_wants_them() -> None:
    model = decoder()
    found = {name: g.get("matrices", 0) for g in grouped(model, matrices=True) for name in names_in(model, g)}
    assert found["blocks.0.attention.qkv.weight"] == 3
    assert found["blocks.0.attention.out.weight"] == found["blocks.0.ffn.fc1.weight"] == 1
    assert found["embedding.weight"] == found["position"] == found["blocks.0.norm1.weight"] == 0
    assert all("matrices" not in group for group in grouped(model))


class Line(pl.LightningModule):
    def __init__(self, make: Any, **arguments: Any) -> None:
        super().__init__()
        self.layer, self.make, self.arguments = nn.Linear(2, 2), make, arguments

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return configure(self, self.make, **self.arguments)


@pytest.mark.parametrize("make", [adamw, partial(torch.optim.SGD, lr=0.1), partial(torch.optim.NAdam, lr=0.1), Muon])
def test_any_optimizer_of_torch_serves_and_follows_the_schedule(make: Any, tmp_path: Path) -> None:
    rules = [Rule("bias", lr_factor=0.5)]
    schedule = WarmupCosine(warmup_steps=2, min_ratio=0.1)
    module = Line(make, schedule=schedule, parameter_groups=rules)
    trainer = pl.Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.randn(12, 2), batch_size=2))
    first, second = trainer.optimizers[0].param_groups
    assert second["lr"] == pytest.approx(first["lr"] / 2)
    assert first["lr"] == pytest.approx(0.1 * first["initial_lr"])
    scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.state_dict()["lr_lambdas"] == [None, None]  # a checkpoint with weights_only holds no function
