"""The loss, its measures, and what a checkpoint needs."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ticks.data.bytes import IGNORE as IGNORE_OF_DATA
from ticks.models import DecoderTransformer, TicksAdapter
from ticks.optim import WarmupCosine, adamw
from ticks.tasks import LanguageModeling
from ticks.tasks.language_modeling import IGNORE


class Table(nn.Module):
    """Logits that depend on the token alone: (B, T) -> (B, T, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]))

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        return self.rows[tokens_BxT]


BATCH = {"x": torch.tensor([[0, 1], [2, 0]]), "y": torch.tensor([[0, 2], [2, 1]])}
NATS = [math.log(math.e + 2) - 1, math.log(math.e**2 + 2), math.log(math.e**3 + 2) - 3, math.log(math.e + 2)]


def decoder(**options: Any) -> DecoderTransformer:
    torch.manual_seed(0)
    return DecoderTransformer(vocab_size=256, block_size=8, d_model=8, n_layers=1, n_heads=2, **options)


def fitted(task: LanguageModeling, directory: Path, *, steps: int, **options: Any) -> pl.Trainer:
    x = torch.randint(0, 3, (8, 4, 8), generator=torch.Generator().manual_seed(0))
    batches = DataLoader([{"x": one, "y": one} for one in x], batch_size=None)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=directory, **options,
    )  # fmt: skip
    trainer.fit(task, batches)
    return trainer


def test_the_loss_is_the_cross_entropy_by_hand() -> None:
    assert LanguageModeling(Table()).loss(BATCH).item() == pytest.approx(sum(NATS) / 4, rel=1e-6)


def test_padding_is_not_counted() -> None:
    padded = {"x": BATCH["x"], "y": BATCH["y"].clone()}
    padded["y"][0, 1] = IGNORE
    task = LanguageModeling(Table())
    assert task.loss(padded).item() == pytest.approx((NATS[0] + NATS[2] + NATS[3]) / 3, rel=1e-6)
    assert task.loss(padded, reduction="sum").item() == pytest.approx(NATS[0] + NATS[2] + NATS[3], rel=1e-6)


def test_data_and_task_mean_the_same_by_padding() -> None:
    assert IGNORE == IGNORE_OF_DATA


@pytest.mark.parametrize(("bytes_per_token", "precision"), [(1.0, "32-true"), (4.0, "32-true"), (1.0, "bf16-true")])
def test_validation_is_the_mean_over_tokens_in_nats_and_bits_per_byte(
    tmp_path: Path, bytes_per_token: float, precision: Any
) -> None:
    only_padding = {"x": BATCH["x"], "y": torch.full_like(BATCH["y"], IGNORE)}
    half = {"x": BATCH["x"][:1], "y": BATCH["y"][:1]}
    loader = DataLoader([BATCH, half, only_padding], batch_size=None)
    trainer = pl.Trainer(
        accelerator="cpu", precision=precision, logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    task = LanguageModeling(Table(), bytes_per_token=bytes_per_token)
    nats = (sum(NATS) + NATS[0] + NATS[1]) / 6
    bits = nats / math.log(2) / bytes_per_token
    for split, run in (("val", trainer.validate), ("test", trainer.test)):
        (found,) = run(task, loader, verbose=False)
        assert found == pytest.approx({f"{split}/loss": nats, f"{split}/bits_per_byte": bits}, rel=1e-6)


def test_training_lowers_the_loss_and_follows_the_schedule(tmp_path: Path) -> None:
    task = LanguageModeling(
        decoder(), optimizer=partial(adamw, lr=1e-2), schedule=WarmupCosine(warmup_steps=5, min_ratio=0.1)
    )
    batch = {"x": torch.zeros(1, 8, dtype=torch.long), "y": torch.zeros(1, 8, dtype=torch.long)}
    before = task.loss(batch).item()
    trainer = fitted(task, tmp_path, steps=20)
    assert task.loss(batch).item() < before - 0.5
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)  # min_lr_ratio of the peak: the end


def test_only_ticks_and_norms_change_where_the_rest_is_frozen(tmp_path: Path) -> None:
    model = decoder(adapter=partial(TicksAdapter, width=4))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("adapter" in name or "norm" in name)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fitted(LanguageModeling(model, optimizer=partial(adamw, lr=1e-2)), tmp_path, steps=5)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "adapter" in name or "norm" in name}


def test_a_checkpoint_is_loadable_by_plain_torch(tmp_path: Path) -> None:
    task = LanguageModeling(decoder())
    trainer = fitted(task, tmp_path, steps=2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    again = LanguageModeling(decoder())
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), again.parameters(), strict=True))
    assert not [name for name in state if "metrics" in name]


def test_generate_follows_its_seed_and_leaves_the_mode_and_the_random_state_alone() -> None:
    task = LanguageModeling(decoder(dropout=0.5))
    task.train()
    state = torch.get_rng_state()
    prompt_T = torch.tensor([84, 104, 101])
    first, again = (task.generate(prompt_T, 20, seed=3) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (23,)
    assert torch.equal(first[:3], prompt_T)
    assert not torch.equal(first, task.generate(prompt_T, 20, seed=4))
    assert task.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sample_bytes": -1}, "sample_bytes=-1 must be at least 0 and at most 1000000"),
        ({"sample_bytes": True}, "sample_bytes=True must be a whole number, at least 0"),
        ({"bytes_per_token": 0.0}, "bytes_per_token=0.0 must be a finite number above 0"),
    ],
)
def test_values_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModeling(Table(), **wrong)
