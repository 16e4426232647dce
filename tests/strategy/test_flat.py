"""The flat buffer: tensors live in it while they train, and leave it whole."""

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import run_workers
from tests.strategy.toys import Toy, trainer_for
from ticks.strategy import Parameters, TickStrategy
from ticks.strategy.diagnostics import SAMPLE_BLOCK, sample
from ticks.strategy.flat import ALIGNMENT, FlatBuffer, digest


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((3, 5), (), (7,), (4, 4, 2))]


def test_adopted_tensors_keep_their_values_and_see_what_happens_to_the_buffer() -> None:
    mine, before = tensors(), tensors()
    flat = FlatBuffer(mine)
    flat.adopt(mine)
    assert all(torch.equal(a, b) for a, b in zip(mine, before, strict=True))
    flat.all.mul_(2)
    assert all(torch.equal(a, 2 * b) for a, b in zip(mine, before, strict=True))


def test_every_tensor_starts_at_a_multiple_of_64_bytes() -> None:
    flat = FlatBuffer(tensors())
    assert all(view.storage_offset() % ALIGNMENT == 0 for view in flat.views)
    assert flat.until(2).numel() == flat.views[2].storage_offset()
    assert flat.until(4).numel() == flat.all.numel()


def test_released_tensors_have_storage_of_their_own() -> None:
    mine = tensors()
    flat = FlatBuffer(mine)
    flat.adopt(mine)
    flat.release(mine)
    flat.all.zero_()
    assert all(torch.equal(a, b) for a, b in zip(mine, tensors(), strict=True))
    assert mine[2].untyped_storage().nbytes() == 7 * 4


def test_other_dtypes_are_copied_in_and_out() -> None:
    mine = [torch.ones(3), torch.ones(3, dtype=torch.bfloat16)]
    flat = FlatBuffer(mine)
    flat.adopt(mine)
    mine[1].mul_(4)
    flat.load(mine)
    flat.all.mul_(2)
    flat.store(mine)
    assert mine[0].tolist() == [2, 2, 2]
    assert mine[1].tolist() == [8, 8, 8]


def test_float64_is_not_rounded() -> None:
    flat = FlatBuffer([torch.full((2,), 1 / 3, dtype=torch.float64)])
    assert flat.all.dtype == torch.float64


@pytest.mark.parametrize("n", [10, 2000 * SAMPLE_BLOCK])
def test_a_sample_estimates_a_distance(n: int) -> None:
    noise = torch.randn(n, generator=torch.Generator().manual_seed(0))
    part = sample(noise)
    assert part.numel() <= max(10, n // 64)
    estimate = part.norm() / part.numel() ** 0.5
    assert estimate.item() == pytest.approx(noise.norm().item() / n**0.5, rel=0.02)


def parameters_after_training() -> tuple[int, int, int]:
    sizes: list[int] = []

    class Saves(Toy):
        def on_train_batch_end(self, *_: object) -> None:
            sizes.append(self.net[0].weight.untyped_storage().nbytes())

    module = Saves()
    trainer = trainer_for(TickStrategy(interval=2, sync=Parameters()), 2, steps=3)
    trainer.fit(module)
    file = io.BytesIO()
    torch.save(module.net[4].state_dict(), file)
    return sizes[0], module.net[0].weight.untyped_storage().nbytes(), len(file.getvalue())


def test_parameters_live_in_the_buffer_while_training_and_leave_it_after() -> None:
    for during, after, saved in run_workers(2, parameters_after_training):
        assert during > after == 6 * 16 * 4
        assert saved < 3000


def test_a_checkpoints_tensors_have_storage_of_their_own(tmp_path: Path) -> None:
    def job() -> None:
        trainer = trainer_for(TickStrategy(interval=2), 2, steps=3)

        class Saves(Toy):
            def on_train_batch_end(self, *_: object) -> None:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

        trainer.fit(Saves())

    run_workers(2, job)
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert state["net.0.weight"].untyped_storage().nbytes() == 6 * 16 * 4


def dtype_after_ticks() -> Tensor:
    class Double(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.third = nn.Parameter(torch.full((3,), 1 / 3, dtype=torch.float64))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Double()
    trainer_for(TickStrategy(interval=2, sync=Parameters()), 2, steps=4).fit(module)
    return module.third.detach().clone()


def test_float64_parameters_survive_ticks_exactly() -> None:
    for third in run_workers(2, dtype_after_ticks):
        assert third.dtype == torch.float64
        assert third.tolist() == [1 / 3] * 3


def test_a_digest_tells_tensors_apart_by_any_bit_and_by_shape() -> None:
    kinds = [torch.zeros(3, 2), torch.zeros(6), torch.zeros(2, 3).T, torch.zeros(6, dtype=torch.bfloat16)]
    kinds += [torch.zeros(()), torch.zeros(0), torch.tensor(0), torch.zeros(6).bool(), torch.zeros(3).cfloat()]
    assert digest([kinds[0]]) == digest([kinds[2]]), "by what they hold, not by how it lies in memory"
    assert len({digest([kind]) for kind in kinds}) == len(kinds) - 1
    mine = torch.randn(1000)
    theirs = mine.clone()
    assert digest([mine]) == digest([theirs])
    theirs.view(torch.int32)[777] ^= 1
    assert digest([mine]) != digest([theirs])
    assert digest(kinds) != digest(kinds[::-1])
