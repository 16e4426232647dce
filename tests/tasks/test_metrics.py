"""The mean loss per token does not depend on how the tokens are shared out."""

import math

import pytest
import torch

from tests.conftest import run_workers
from ticks.tasks.metrics import TokenLoss


def measured(shares: list[tuple[float, int]], unit: float = 1.0) -> TokenLoss:
    metric = TokenLoss(unit=unit)
    for nll, tokens in shares:
        metric.update(torch.tensor(nll), torch.tensor(tokens))
    return metric


def test_it_is_the_mean_per_token_and_not_per_batch() -> None:
    assert float(measured([(10.0, 10), (6.0, 2)]).compute()) == pytest.approx(16 / 12)


def test_two_halves_equal_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(1000, generator=generator)
    whole = measured([(losses.sum().item(), 1000)])
    halves = measured([(losses[:300].sum().item(), 300), (losses[300:].sum().item(), 700)])
    assert float(whole.compute()) == pytest.approx(float(halves.compute()), rel=1e-6)


def _of_worker(shares: list[list[tuple[float, int]]]) -> float:
    import os

    import torch.distributed as dist

    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=len(shares))
    result = float(measured(shares[rank]).compute())
    dist.destroy_process_group()
    return result


def test_two_workers_with_unequal_shares_equal_one() -> None:
    shares = [[(10.0, 10), (1.0, 3)], [(6.0, 2)]]
    alone = float(measured([share for worker in shares for share in worker]).compute())
    assert run_workers(2, _of_worker, shares) == [alone, alone]


def test_a_unit_of_ln_2_gives_bits() -> None:
    assert float(measured([(math.log(256) * 7, 7)], unit=math.log(2)).compute()) == pytest.approx(8.0)


def test_sums_are_exact_where_single_precision_is_not() -> None:
    metric = measured([(1e8, 1)])
    for _ in range(10):
        metric.update(torch.tensor(1.0), torch.tensor(0))
    assert float(metric.total) == 1e8 + 10
    assert metric.compute().dtype == torch.float64


def test_sums_stay_exact_when_the_module_around_changes_precision() -> None:
    module = torch.nn.ModuleDict({"loss": measured([(1.5, 1)])}).to(torch.bfloat16)
    module["loss"].update(torch.tensor(1000.25), torch.tensor(1))
    assert float(module["loss"].compute()) == 1001.75 / 2
    module["loss"].reset()
    assert module["loss"].total.dtype == torch.float64


def test_sums_follow_the_module_to_its_device() -> None:
    assert torch.nn.ModuleDict({"loss": measured([(1.5, 1)])}).to("meta")["loss"].total.device.type == "meta"


def test_reset_forgets() -> None:
    metric = measured([(10.0, 10)])
    metric.reset()
    metric.update(torch.tensor(3.0), torch.tensor(1))
    assert float(metric.compute()) == 3.0


def test_an_evaluation_in_inference_mode_leaves_a_metric_that_training_can_go_on_with() -> None:
    metric = TokenLoss()
    with torch.inference_mode():  # Trainer.validate, where the process group is not gloo's
        metric.update(torch.tensor(2.0), torch.tensor(1))
        metric.reset()
    with torch.no_grad():  # a validation inside training
        metric.update(torch.tensor(6.0), torch.tensor(2))
    assert metric.compute() == 3.0
