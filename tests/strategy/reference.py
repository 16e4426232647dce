"""What every rule of ticks.strategy does, said a second time: n workers in one process, float64 NumPy, no messages.

    for every round, for every step t of it:
        g_i = gradient(i, t, x_i);  x_i <- inner optimizer(x_i, g_i, lr(t));  and the rule, which acts on all workers

Shapes: N workers, P numbers of one worker (its parameters in their order, flattened), K of them in a fragment, T steps.
`x_NxP[i]` is worker i. Nothing here imports the package: tests compare the two.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np

Array = np.ndarray
Named = dict[str, Array]
Gradient = Callable[[int, int, Named], Named]  # (worker, step from 1, its parameters) -> gradient of the same shapes

# ---- optimizers: elementwise, so one of them serves all workers at once ---------------------------------------------


class SGD:
    """u <- momentum u + g;  x <- x - lr u;  Nesterov: x <- x - lr (g + momentum u). As torch.optim.SGD."""

    def __init__(self, *, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.momentum, self.nesterov = momentum, nesterov
        self.state: Named = {}

    def step(self, x: Array, g: Array, lr: float) -> Array:
        u = self.state["momentum_buffer"] = self.momentum * self.state.get("momentum_buffer", 0.0) + g
        return x - lr * (g + self.momentum * u if self.nesterov else u)


class AdamW:
    """m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2;  after k steps
    x <- (1 - lr weight_decay) x - lr / (1-b1^k) m / (sqrt(v / (1-b2^k)) + eps). As torch.optim.AdamW (1711.05101);
    with weight_decay 0 torch.optim.Adam (1412.6980).
    """

    def __init__(self, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0):
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.state: Named = {}
        self.k = 0

    def step(self, x: Array, g: Array, lr: float) -> Array:
        (b1, b2), self.k = self.betas, self.k + 1
        m = self.state["exp_avg"] = b1 * self.state.get("exp_avg", 0.0) + (1 - b1) * g
        v = self.state["exp_avg_sq"] = b2 * self.state.get("exp_avg_sq", 0.0) + (1 - b2) * g**2
        update = m / (1 - b1**self.k) / (np.sqrt(v / (1 - b2**self.k)) + self.eps)
        return (1 - lr * self.weight_decay) * x - lr * update


Optimizer = SGD | AdamW

# ---- rules ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Now:
    """Which step has just been done: the `step`-th of the run, the `of_round`-th of its round of `length` steps.

    `lr` is the inner learning rate it used; `last_round` says that training ends with this round.
    """

    step: int
    of_round: int
    length: int
    lr: float
    last_round: bool

    @property
    def tick(self) -> bool:
        return self.of_round == self.length


class Parameters:
    """Tick: x_i <- mean x (local SGD, 1805.09767)."""

    anchor_P: Array | None = None  # what the rule takes for the agreed model, where it is not the workers' mean

    def start(self, x_NxP: Array) -> None:
        """The workers hold the same numbers, and the first round begins."""

    def gradients(self, g_NxP: Array, now: Now) -> Array | None:
        """What the inner optimizer gets in this step; None: it does not step."""
        return g_NxP

    def after(self, x_NxP: Array, now: Now) -> Array:
        return mean(x_NxP) if now.tick else x_NxP


class Gradients(Parameters):
    """Tick: g_i <- mean g before the optimizer's step, x_i <- mean x after it. At interval 1 this is DDP."""

    def gradients(self, g_NxP: Array, now: Now) -> Array | None:
        return mean(g_NxP) if now.tick else g_NxP


class DDP(Parameters):
    """Every step: g_i <- mean g, so x stays equal everywhere."""

    def gradients(self, g_NxP: Array, now: Now) -> Array | None:
        return mean(g_NxP)

    def after(self, x_NxP: Array, now: Now) -> Array:
        return x_NxP


class Accumulate(DDP):
    """No optimizer step but the tick's, with the mean of all n H gradients of the round: x stays equal everywhere."""

    def gradients(self, g_NxP: Array, now: Now) -> Array | None:
        self.sum_NxP = g_NxP if now.of_round == 1 else self.sum_NxP + g_NxP
        return mean(self.sum_NxP) / now.length if now.tick else None


class Outer(Parameters):
    """Tick: g = anchor - mean x;  anchor <- outer optimizer(anchor, g, lr);  x_i <- anchor.

    With Nesterov DiLoCo (2311.08105). `relative_to_lr`, gamma being the inner learning rate, gives the optimizer
    g / gamma and lr gamma: with momentum beta and lr alpha that is SlowMo (1910.00643),
        u <- beta u + (anchor - mean x) / gamma;  anchor <- anchor - alpha gamma u;  gamma = 0: anchor - alpha g.
    """

    def __init__(self, optimizer: Callable[[], Optimizer], lr: float, *, relative_to_lr: bool = False) -> None:
        self.new_optimizer, self.lr, self.relative_to_lr = optimizer, lr, relative_to_lr

    def start(self, x_NxP: Array) -> None:
        self.anchor_P = x_NxP[0].copy()
        self.optimizer = self.new_optimizer()

    def outer_step(self, optimizer: Optimizer, anchor: Array, g: Array, gamma: float) -> Array:
        if not self.relative_to_lr:
            return optimizer.step(anchor, g, self.lr)
        return anchor - self.lr * g if gamma == 0 else optimizer.step(anchor, g / gamma, self.lr * gamma)

    def after(self, x_NxP: Array, now: Now) -> Array:
        if not now.tick:
            return x_NxP
        g_P = self.anchor_P - x_NxP.mean(0)
        self.anchor_P = self.outer_step(self.optimizer, self.anchor_P, g_P, now.lr)
        return np.tile(self.anchor_P, (len(x_NxP), 1))


class Streaming(Outer):
    """Streaming DiLoCo (2501.18512): fragment f of the F sends g = mean(anchor_f - x_f) after step max(1, H f // F) of
    each round (f from 1), and `delay` steps later
        anchor_f <- its own outer optimizer(anchor_f, g);  x_f <- alpha x_f + (1 - alpha) anchor_f.
    A fragment that sends again before that applies the earlier g first. In the last round of training all fragments
    send at its end, and x_f <- anchor_f at once.

    `fragments`: the places (K,) of each in the flattened parameters (see `places`).
    """

    def __init__(self, fragments: Sequence[Array], delay: int, alpha: float, *outer, **options) -> None:
        super().__init__(*outer, **options)
        self.fragments, self.delay, self.alpha = fragments, delay, alpha

    def start(self, x_NxP: Array) -> None:
        super().start(x_NxP)
        self.optimizers = [self.new_optimizer() for _ in self.fragments]
        self.in_flight: dict[int, tuple[int, Array, float]] = {}  # fragment: (step of arrival, g_K, lr when sent)

    def after(self, x_NxP: Array, now: Now) -> Array:
        x_NxP, n_fragments = x_NxP.copy(), len(self.fragments)
        for f, places_K in enumerate(self.fragments):
            end = now.last_round and now.tick
            due = max(1, now.length * (f + 1) // n_fragments)
            sends = end if now.last_round else now.of_round == due
            if f in self.in_flight and (sends or self.in_flight[f][0] == now.step):
                self.arrive(f, x_NxP, self.alpha)
            if sends:
                g_K = self.anchor_P[places_K] - x_NxP[:, places_K].mean(0)
                self.in_flight[f] = (now.step + self.delay, g_K, now.lr)
                if end or self.delay == 0:
                    self.arrive(f, x_NxP, 0.0 if end else self.alpha)
        return x_NxP

    def arrive(self, f: int, x_NxP: Array, alpha: float) -> None:
        places_K, (_, g_K, lr) = self.fragments[f], self.in_flight.pop(f)
        anchor_K = self.outer_step(self.optimizers[f], self.anchor_P[places_K], g_K, lr)
        self.anchor_P = self.anchor_P.copy()
        self.anchor_P[places_K] = anchor_K
        x_NxP[:, places_K] = alpha * x_NxP[:, places_K] + (1 - alpha) * anchor_K


class Hierarchical(Parameters):
    """Groups of neighbours x <- mean over the group after steps h, 2h, ... of a round but its last; at the tick `outer`
    (2010.12998)."""

    def __init__(self, outer: Parameters, group_size: int, inner_interval: int) -> None:
        self.outer, self.group_size, self.inner_interval = outer, group_size, inner_interval

    def start(self, x_NxP: Array) -> None:
        self.outer.start(x_NxP)

    @property
    def anchor_P(self) -> Array | None:
        return self.outer.anchor_P

    def gradients(self, g_NxP: Array, now: Now) -> Array | None:
        return self.outer.gradients(g_NxP, now)

    def after(self, x_NxP: Array, now: Now) -> Array:
        if not now.tick and now.of_round % self.inner_interval == 0:
            groups = np.split(x_NxP, len(x_NxP) // self.group_size)
            x_NxP = np.concatenate([mean(group) for group in groups])
        return self.outer.after(x_NxP, now)


# ---- the inner optimizer's state at ticks ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Average:
    """State tensors named in `every` are averaged after every `every[name]`-th round (DES-LOC, 2505.22549)."""

    every: Mapping[str, int]


@dataclass(frozen=True)
class Reset:
    """The inner optimizer starts anew after every `every`-th round."""

    every: int = 1


# ---- the simulation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trajectory:
    """After each step: every worker's parameters, and what evaluation uses: the anchor or the workers' mean."""

    x_TxNxP: Array
    agreed_TxP: Array


def simulate(
    gradient: Gradient,
    initial: Named,
    *,
    n: int,
    rule: Parameters,
    rounds: Sequence[int],
    inner: Callable[[], Optimizer],
    lr: Callable[[int], float],
    state: Average | Reset | None = None,
    ddp_steps: int = 0,
) -> Trajectory:
    """Train n workers: `ddp_steps` steps of DDP, then `rounds` (their lengths in steps). `lr` by step, from 1."""
    x_NxP = np.tile(flatten(initial), (n, 1))
    optimizer = inner()
    x_TxNxP, agreed_TxP = [], []

    def gradients(step: int) -> Array:
        return np.stack([flatten(gradient(i, step, unflatten(x_NxP[i], initial))) for i in range(n)])

    for step in range(1, ddp_steps + 1):
        x_NxP = optimizer.step(x_NxP, mean(gradients(step)), lr(step))
        x_TxNxP.append(x_NxP)
        agreed_TxP.append(x_NxP.mean(0))
    step = ddp_steps
    rule.start(x_NxP)
    for number, length in enumerate(rounds, start=1):
        for of_round in range(1, length + 1):
            step += 1
            now = Now(step, of_round, length, lr(step), last_round=number == len(rounds))
            if (g_NxP := rule.gradients(gradients(step), now)) is not None:
                x_NxP = optimizer.step(x_NxP, g_NxP, now.lr)
            x_NxP = rule.after(x_NxP, now)
            x_TxNxP.append(x_NxP)
            agreed_TxP.append(x_NxP.mean(0) if rule.anchor_P is None else rule.anchor_P)
        if isinstance(state, Average):
            for name in state.every:
                if number % state.every[name] == 0:
                    optimizer.state[name] = mean(optimizer.state[name])
        elif isinstance(state, Reset) and number % state.every == 0:
            optimizer = inner()
    return Trajectory(np.stack(x_TxNxP), np.stack(agreed_TxP))


def mean(numbers_NxP: Array) -> Array:
    """Every row becomes the mean of all: (N, P) -> (N, P)."""
    return np.tile(numbers_NxP.mean(0), (len(numbers_NxP), 1))


def flatten(named: Named) -> Array:
    return np.concatenate([np.asarray(array, dtype=np.float64).ravel() for array in named.values()])


def unflatten(flat_P: Array, like: Named) -> Named:
    ends = np.cumsum([array.size for array in like.values()])
    parts = np.split(flat_P, ends[:-1])
    return {name: part.reshape(array.shape) for (name, array), part in zip(like.items(), parts, strict=True)}


def places(initial: Named, *patterns: str) -> Array:
    """Where in the flattened parameters those lie whose name fits one of the patterns (shell style): (K,)."""
    fits = {name: np.full(a.shape, any(fnmatch(name, p) for p in patterns)) for name, a in initial.items()}
    return np.flatnonzero(flatten(fits))
