"""What ticks cannot train, said on every worker before training starts: `Refused` names it, and what to do instead."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, Timer, WeightAveraging
from torch.optim import Optimizer

from ticks.arguments import ArgumentError, under
from ticks.strategy.fragments import fragment_of
from ticks.strategy.optimizer_state import OptimizerState
from ticks.strategy.sync import Sync


class Refused(ValueError):
    """A combination that would not do what it says; raised on every worker before training starts."""


class RefusedArgument(ArgumentError, Refused):
    """One whose reason is a value that was given: `sync.group_size` of the strategy, say."""


def refused(argument: str, error: ValueError) -> Refused:
    """The refusal of what was given as `argument`, from its own words."""
    if isinstance(error, ArgumentError):
        return RefusedArgument(f"{argument}.{error.argument}", error.value, error.valid)
    return Refused(under(argument, error))


def refuse_callbacks(trainer: Trainer, *, world_size: int) -> None:
    """That talk at every step, or look at one worker's parameters as if they were the model's."""
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, Timer):
            raise Refused("max_time (the Timer callback) talks at every batch: give max_steps")
        if world_size > 1 and isinstance(callback, WeightAveraging | StochasticWeightAveraging):
            name = type(callback).__name__
            raise Refused(f"{name} averages one worker's own weights, which differ between ticks: leave it out")


def refuse_groups(size: int, world_size: int) -> None:
    """That cannot have so many workers each."""
    if world_size % size:
        valid = ", ".join(str(divisor) for divisor in range(1, world_size + 1) if world_size % divisor == 0)
        raise RefusedArgument(
            "sync.group_size", size, f"must divide the number of workers, {world_size}; valid: {valid}"
        )


def refuse_parameters(module: LightningModule) -> None:
    """That cannot travel as real numbers."""
    for name, parameter in module.named_parameters():
        if parameter.is_complex():
            raise Refused(f"parameter {name} is complex: keep its real and imaginary part as a real tensor")


def refuse_gradients(trainer: Trainer, module: LightningModule, who: str) -> None:
    """That cannot be averaged before the optimizer sees them, which `who` needs."""
    if not module.automatic_optimization:
        raise Refused(f"{who} needs automatic optimization: use a rule that sends no gradients, sync=Parameters()")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise Refused(f"{who} cannot average scaled gradients: use precision=bf16-mixed, or sync=Parameters()")


def refuse_fragments(module: LightningModule, sync: Sync) -> None:
    """That do not fit the module's parameters."""
    named = [(name, p.numel()) for name, p in module.named_parameters() if p.requires_grad]
    try:
        fragment_of([name for name, _ in named], [size for _, size in named], sync.fragments)
    except ValueError as error:
        raise refused("sync", error) from None


def refuse_different_ends(everyones: Sequence[tuple[float, float]]) -> None:
    """Workers that would do different numbers of steps, or have different numbers of batches: (steps, batches) each."""
    if len(totals := {total for total, _ in everyones}) > 1:
        raise Refused(f"workers would do different numbers of steps, {sorted(totals)}: give the Trainer"
                      " max_steps, and as many batches to each")  # fmt: skip
    if len(counts := {count for _, count in everyones}) > 1:  # they would evaluate and save after other steps
        raise Refused(f"workers have different numbers of batches, {sorted(counts)}: give as many to each, or"
                      f" the Trainer limit_train_batches={min(counts):g}")  # fmt: skip


def refuse_optimizers(
    optimizers: Sequence[Optimizer], state_names: list[str], rule: OptimizerState, *, sends_gradients: bool
) -> None:
    """That have not the states (`state_names`) which the rule averages, or use gradients in a way of their own."""
    try:
        rule.averaged(1, state_names)
    except ValueError as error:
        raise refused("optimizer_state", error) from None
    if sends_gradients and any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise Refused("LBFGS computes gradients a number of times that workers do not share: use sync=Parameters()")
