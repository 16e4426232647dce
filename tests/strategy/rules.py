"""Every kind of sync rule, and a toy that writes down what it sees: what the tests of one promise each share."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from tests.strategy.toys import Snapshots, Stream, Toy, flat, trainer_for
from ticks.strategy import (
    FP32,
    Accumulate,
    Gradients,
    Int8,
    LowRank,
    Outer,
    Parameters,
    Streaming,
    TickStrategy,
)

STEPS, INTERVAL = 14, 4
TICKS = (4, 8, 12, 14)
NESTEROV = partial(torch.optim.SGD, lr=0.7, momentum=0.5, nesterov=True)
RULES: dict[str, Callable[..., TickStrategy]] = {
    "parameters": partial(TickStrategy, INTERVAL, sync=Parameters()),
    "gradients": partial(TickStrategy, INTERVAL, sync=Gradients()),
    "accumulate": partial(TickStrategy, INTERVAL, sync=Accumulate()),
    "outer": lambda **options: TickStrategy(INTERVAL, sync=Outer(NESTEROV), **options),
    "streaming": lambda **options: TickStrategy(INTERVAL, sync=Streaming(NESTEROV, fragments=2, delay=1), **options),
    "int8": lambda **options: TickStrategy(INTERVAL, sync=Parameters(), wire=Int8(), **options),
    "low rank": lambda **options: TickStrategy(INTERVAL, sync=Parameters(), wire=LowRank(2, wire=FP32()), **options),
}
STEPPING_LOCALLY = [rule for rule in RULES if rule != "accumulate"]
MEETING_AT_TICKS = [rule for rule in RULES if rule != "streaming"]  # streaming mixes; it meets at the end only


class Probe(Toy):
    """A toy that writes down everything: gradients before and after ticks see them, parameters before and after."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gradients: dict[int, Tensor] = {}  # by step: its own
        self.used: dict[int, Tensor] = {}  # what the optimizer got, before clipping
        self.stepped: dict[int, Tensor] = {}  # parameters after the optimizer's step, before workers meet
        self.buffers_of: dict[int, list[Tensor]] = {}  # after the forward pass
        self.lrs: dict[int, float] = {}

    def on_after_backward(self) -> None:
        step = self.trainer.global_step + 1
        self.gradients[step] = flat_gradients(self)
        self.buffers_of[step] = [b.clone() for b in self.buffers()]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.used[self.trainer.global_step + 1] = flat_gradients(self)

    def optimizer_of(self) -> torch.optim.Optimizer:
        kind = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.AdamW
        optimizer = kind(self.parameters(), lr=self.lr)
        optimizer.register_step_post_hook(lambda *_: self.note_step())
        return optimizer

    def note_step(self) -> None:
        self.stepped[self.trainer.global_step + 1] = flat(self)

    def configure_optimizers(self) -> Any:
        return self.optimizer_of()


class Buffers(pl.Callback):
    """The module's buffers after each step."""

    def __init__(self) -> None:
        self.after: dict[int, list[Tensor]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.after[trainer.global_step] = [b.clone() for b in pl_module.buffers()]


def flat_gradients(module: nn.Module) -> Tensor:
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                      for p in module.parameters()])  # fmt: skip


def agreed_loss(module: Toy, batches: int = 8) -> float:
    """Of the module as it is now, on batches nobody trains on."""
    stream = iter(Stream(99))
    module.eval()
    with torch.no_grad():
        loss = sum(module.loss(next(stream)).item() for _ in range(batches)) / batches
    module.train()
    return loss


def train(
    strategy: Callable[[], Any], n: int, module: Callable[[], Any] = Probe, callbacks: Callable[[], list] = list,
    steps: int = STEPS, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """A short training and all that was seen, on this worker."""
    pl.seed_everything(0, verbose=False)
    toy, snapshots, buffers, made = module(), Snapshots(), Buffers(), strategy()
    before = agreed_loss(toy)
    told: dict[int, dict[str, float]] = {}
    if isinstance(made, TickStrategy):
        made.on_tick.append(lambda metrics: told.update({made.step: metrics}))
    trainer = trainer_for(made, n, steps=steps, callbacks=[*callbacks(), snapshots, buffers], **options)
    trainer.fit(toy)
    found = {"buffers_after": buffers.after} | {
        name: value for name, value in vars(toy).items() if isinstance(value, dict) and not name.startswith("_")
    }
    return found | {
        "after": snapshots.after,
        "losses": toy.losses,
        "loss": (before, agreed_loss(toy)),
        "final": flat(toy),
        "buffers": [b.clone() for b in toy.buffers()],
        "ledger": getattr(trainer.strategy, "ledger", None),
        "told": told,
        "dtypes": {p.dtype for p in toy.parameters()},
        "seen": toy.seen,
        "state": toy.state_dict(),
    }


def meet_at_ticks(results: Sequence[dict[str, Any]], rule: str) -> None:
    """Bit for bit after ticks (after training, for streaming), and only then; values that make sense."""
    for step in TICKS if rule != "streaming" else TICKS[-1:]:
        assert all(torch.equal(results[0]["after"][step], r["after"][step]) for r in results), f"step {step}"
    assert all(torch.equal(results[0]["final"], r["final"]) for r in results)
    assert all(torch.equal(a, b) for r in results for a, b in zip(results[0]["buffers"], r["buffers"], strict=True)
               if a.is_floating_point())  # fmt: skip
    assert torch.equal(results[0]["after"][10], results[1]["after"][10]) == (rule == "accumulate")
    before, after = results[0]["loss"]
    assert after < before


class Adversaries(Toy):
    """Two nets, each with its optimizer, that step by hand one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(6, 6), nn.Linear(6, 1)
        self.net = None

    def loss(self, batch: Any) -> Tensor:
        x, _ = batch
        return (self.generator(x) - x).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        of_generator, of_critic = self.optimizers()
        fake = self.generator(x)
        gap = self.critic(fake.detach()).mean() - self.critic(x).mean() + 0.1 * self.critic(x).square().mean()
        of_critic.zero_grad()
        self.manual_backward(gap)
        of_critic.step()
        loss = self.loss(batch) - 0.01 * self.critic(fake).mean()
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()
        self.losses.append(loss.item())

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(self.generator.parameters(), lr=0.05), torch.optim.SGD(self.critic.parameters(), 0.1)]


def case(rule: str, **options: Any) -> Callable[[], dict[str, Any]]:
    return partial(train, RULES[rule], 2, **options)
