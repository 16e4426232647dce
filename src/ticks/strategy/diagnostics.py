"""What a tick shows of training: how far workers were apart, and whether they pull in one direction.

All of it is estimated from samples of the flat tensors. u_i = anchor - x_i is what worker i did in a round, g its mean
over the workers.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

SAMPLE_BLOCK, SAMPLE_EVERY = 256, 64  # one block in 64 of a large tensor


def sample(numbers_P: Tensor) -> Tensor:
    """A copy of the numbers, or of evenly spread blocks of them if they are many: enough to estimate a distance."""
    stride = SAMPLE_BLOCK * SAMPLE_EVERY
    blocks = numbers_P.numel() // stride
    if blocks < 16:
        return numbers_P.clone()
    return numbers_P[: blocks * stride].view(blocks, stride)[:, :SAMPLE_BLOCK].reshape(-1)


def new_sums() -> dict[str, float]:
    """Sums over a round's samples: |u_i|^2, |g|^2, |u_i - g|^2, |anchor|^2, |last g|^2, g . last g."""
    return dict.fromkeys(("mine", "mean", "apart", "anchor", "previous", "along"), 0.0)


@dataclass
class Seen:
    """One worker's view, round by round; parameters may come in several fragments."""

    sums: dict[str, float] = field(default_factory=new_sums)  # of what is being sent
    drift: float = math.nan  # of this worker in the last round: it travels in the next message
    before: dict[int, Tensor] = field(default_factory=dict)  # by fragment: this worker's sample of u
    anchors: dict[int, Tensor] = field(default_factory=dict)  # by fragment: a sample of the anchor
    gradients: dict[int, Tensor] = field(default_factory=dict)  # by fragment: the last round's g

    def anchor(self, fragment: int, anchor_P: Tensor) -> None:
        """A round starts from this anchor."""
        self.anchors[fragment] = sample(anchor_P)

    def sent(self, fragment: int, parameters_P: Tensor) -> None:
        """This worker's parameters, just before they meet the others'."""
        mine = self.anchors[fragment] - sample(parameters_P)
        self.before[fragment] = mine
        self.sums["mine"] += _square(mine) * _scale(parameters_P, mine)

    def received(self, fragment: int, pseudo_gradient_S: Tensor, scale: float, sums: dict[str, float]) -> None:
        """A sample of the mean over the workers of what was sent; each number of it stands for `scale`."""
        g = pseudo_gradient_S
        sums["mean"] += scale * _square(g)
        sums["apart"] += scale * _square(self.before.pop(fragment) - g)
        sums["anchor"] += scale * _square(self.anchors[fragment])
        if (last := self.gradients.get(fragment)) is not None and last.shape == g.shape:
            sums["previous"] += scale * _square(last)
            sums["along"] += scale * float(torch.dot(g, last))
        self.gradients[fragment] = g

    def metrics(self, sums: dict[str, float], mine_of_all: list[float], drift_of_all: list[float]) -> dict[str, float]:
        """The round's figures, the same on every worker but for rounding; nan where there is nothing to compare."""
        n, total = len(mine_of_all), sum(mine_of_all)
        self.drift = math.sqrt(_ratio(sums["apart"], sums["anchor"], 0.0))
        return {
            "drift": sum(drift_of_all) / n,
            "drift_max": max(drift_of_all),
            "pseudo_gradient_norm": math.sqrt(sums["mean"]),
            "cosine_rounds": _ratio(sums["along"], math.sqrt(sums["mean"] * sums["previous"]), math.nan),
            "cosine_workers": _ratio(n * n * sums["mean"] - total, (n - 1) * total, math.nan),
        }

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in ("sums", "drift", "before", "anchors", "gradients")}

    def load_state_dict(self, state: dict) -> None:
        for name in ("sums", "drift", "before", "anchors", "gradients"):
            setattr(self, name, state[name])


def _square(numbers: Tensor) -> float:
    return float(torch.dot(numbers, numbers))


def _scale(whole: Tensor, part: Tensor) -> float:
    return whole.numel() / max(1, part.numel())


def _ratio(above: float, below: float, otherwise: float) -> float:
    return above / below if below > 0 and math.isfinite(below) else otherwise
