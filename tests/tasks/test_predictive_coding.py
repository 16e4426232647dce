"""q - log q: least at certainty, its slope 1 - 1/q, and nothing of it where it weighs nothing."""

import math

import pytest
import torch

from ticks.arguments import ArgumentError
from ticks.tasks import LanguageModeling, PredictiveCoding


def test_it_is_the_formula_and_its_slope() -> None:
    for q in (0.1, 0.5, 0.9, 1 - 1e-6):
        logit = torch.tensor(math.log(q / (1 - q)), dtype=torch.double, requires_grad=True)
        logits = torch.stack([logit, torch.zeros((), dtype=torch.double)]).unsqueeze(0)
        penalty, e = PredictiveCoding(weight=0.5)(logits, torch.tensor([0]))
        assert float(e) == pytest.approx(q - math.log(q))
        assert float(penalty) == pytest.approx(0.5 * float(e))
        penalty.backward()
        slope = 0.5 * (1 - 1 / q) * q * (1 - q)  # de/dq dq/dlogit
        assert float(logit.grad) == pytest.approx(slope, abs=1e-9)  # type: ignore[arg-type]
    assert 1 - 1e-6 - math.log(1 - 1e-6) == pytest.approx(1.0)


def test_padding_counts_for_nothing_and_the_mean_is_over_the_rest() -> None:
    logits = torch.randn(4, 5)
    y = torch.tensor([1, -100, 3, -100])
    rule = PredictiveCoding()
    _, e = rule(logits, y)
    q = logits.softmax(-1)[[0, 2], [1, 3]]
    assert float(e) == pytest.approx(float((q - q.log()).mean()), rel=1e-5)
    assert float(rule(logits, torch.full((4,), -100))[1]) == 0.0
    with pytest.raises(ArgumentError, match="weight=-1 must not be negative"):
        PredictiveCoding(weight=-1)


class Alone(LanguageModeling):
    """Without a trainer."""

    trainer, global_step = None, 0  # type: ignore[assignment]


def test_a_language_model_learns_from_both() -> None:
    torch.manual_seed(0)
    model = torch.nn.Embedding(5, 5)
    batch = {"x": torch.tensor([[1, 2, 3]]), "y": torch.tensor([[2, 3, 4]])}
    plain = Alone(model)
    zero = Alone(model, regulariser=PredictiveCoding(weight=0.0))
    some = Alone(model, regulariser=PredictiveCoding(weight=0.1))
    q = torch.nn.functional.cross_entropy(model(batch["x"])[0], batch["y"][0], reduction="none").neg().exp()
    expected = float(-q.log().mean() + 0.1 * (q - q.log()).mean())
    logged: dict[str, float] = {}
    for task in (plain, zero, some):
        task.log = lambda name, value: logged.update({name: float(value)})  # type: ignore[method-assign]
    loss = plain.training_step(batch, 0)
    assert float(zero.training_step(batch, 0)) == float(loss)
    assert float(some.training_step(batch, 0)) == pytest.approx(expected, rel=1e-5)
    assert logged["train/loss"] == pytest.approx(expected, rel=1e-5), "what is minimised"
    assert logged["train/e"] == pytest.approx(float((q - q.log()).mean()), rel=1e-5)
