"""What every task shares: a model, and how it is optimized."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from ticks.models.changes import digest, frozen, quiet_statistics, stay_pruned
from ticks.optim import Rule, WarmupCosine, adamw, configure
from ticks.optim.groups import MakesOptimizer, Schedule


class Task(LightningModule):
    """Train `model`. `optimizer` makes one of parameter groups (default: AdamW), `schedule` is a factor of its learning
    rate at each optimizer step (default: warm-up and cosine), `parameter_groups` are `ticks.optim.Rule`s.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: MakesOptimizer = adamw,
        schedule: Schedule | None = None,
        parameter_groups: Sequence[Rule | Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer = optimizer
        self.schedule = WarmupCosine(warmup_steps=50, min_ratio=0.1) if schedule is None else schedule
        self.parameter_groups = [rule if isinstance(rule, Rule) else Rule(**rule) for rule in parameter_groups]

    def configure_optimizers(self) -> Any:
        made = configure(self, self.make_optimizer, self.schedule, self.parameter_groups)
        stay_pruned(self.model, made["optimizer"])
        return made

    # ---- a base that does not train

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        quiet_statistics(self.model)
        return self

    def on_fit_start(self) -> None:
        quiet_statistics(self.model)
        self._before = digest(frozen(self.model))
        self._source_digest: str | None = None

    def on_fit_end(self) -> None:
        """RuntimeError if anything changed that was frozen: then something is wrong with what trained it."""
        if digest(frozen(self.model)) != self._before:
            raise RuntimeError("training has changed what is frozen")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is frozen and can be had again where it came from is not kept: its digest and its source are."""
        if kept := self._from_source():
            for name in kept:
                del checkpoint["state_dict"][name]
            self._source_digest = getattr(self, "_source_digest", None) or digest(kept)  # it is frozen
            checkpoint["base"] = {
                "source": str(self.model.source), "names": sorted(kept), "digest": self._source_digest,
            }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """MisconfigurationException if the base is not the one that was trained on."""
        about = checkpoint.get("base")
        if about is None:
            return
        own = {name: value for name, value in self.state_dict().items() if name in set(about["names"])}
        if digest(own) != about["digest"]:
            raise MisconfigurationException(
                f"model: {self.model.source} is not the base that this run was trained on, {about['source']} as it was"
            )
        checkpoint["state_dict"] |= own

    def _from_source(self) -> dict[str, Tensor]:
        """By name, what is frozen of the model that was given, if it says where from."""
        if not getattr(self.model, "source", None):
            return {}
        return {f"model.{name}": value for name, value in frozen(self.model).items() if name.startswith("body.")}
