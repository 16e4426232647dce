"""The launcher, in a project of somebody else: a script that uses nothing of ours but the strategy."""

import os
import textwrap
from pathlib import Path

import pytest

from tests.conftest import Command, run_command
from ticks.strategy.exits import exit_in_words
from ticks.strategy.launch import restored_environment

SCRIPT = """
    import sys
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from ticks.strategy import TickStrategy

    class Net(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
        def training_step(self, batch, batch_idx):
            if self.global_rank == 1 and "crash" in sys.argv and batch_idx == 3:
                raise KeyError("a bug on one worker")
            return self.layer(batch[0]).square().mean()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)
        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 4)), batch_size=4)

    if __name__ == "__main__":
        strategy = TickStrategy(interval=3)
        trainer = Trainer(strategy=strategy, accelerator="cpu", devices=2, max_epochs=2, logger=False,
                          enable_checkpointing=False, enable_progress_bar=False)
        trainer.fit(Net())
        sys.stdout.write(f"worker {trainer.global_rank} of {trainer.world_size} steps {strategy.step}"
                         f" ticks {strategy.ledger.ticks}\\n")
        sys.stdout.flush()
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    script = tmp_path / "somebody_elses.py"
    script.write_text(textwrap.dedent(SCRIPT))
    return str(script)


def test_a_foreign_script_trains_with_the_strategy_alone(script: str, tmp_path: Path) -> None:
    code, output = run_command(tmp_path, program=script)
    assert code == 0, output
    for rank in (0, 1):  # 64 samples over 2 workers, batches of 4: 8 steps an epoch
        assert f"worker {rank} of 2 steps 16 ticks 6" in output


def test_a_crash_of_one_worker_ends_the_foreign_script(script: str, tmp_path: Path) -> None:
    command = Command(tmp_path, "crash", program=script)
    assert command.end(40) != 0
    assert "a bug on one worker" in command.output
    assert not command.group()


def test_the_environment_is_given_back() -> None:
    before = dict(os.environ)
    with restored_environment():
        os.environ["WORLD_SIZE"] = "4"
        os.environ.pop("OMP_NUM_THREADS", None)
    assert dict(os.environ) == before


@pytest.mark.parametrize(("code", "words"), [(-9, "was killed by SIGKILL"), (3, "ended with exit code 3")])
def test_exit_codes_are_told_in_words(code: int, words: str) -> None:
    assert exit_in_words(code) == words


def test_one_worker_hosts_no_store_and_is_watched_by_no_thread(tmp_path: Path) -> None:
    code = (
        f"{textwrap.dedent(SCRIPT).partition('if __name__')[0]}"
        "import threading, torch.distributed as dist\n"
        "for _ in range(2):\n"
        "    trainer = Trainer(strategy=TickStrategy(interval=3), accelerator='cpu', devices=1, max_steps=4,\n"
        "                      logger=False, enable_checkpointing=False, enable_progress_bar=False)\n"
        "    trainer.fit(Net())\n"
        "    print('store', trainer.strategy.launcher.store, dist.get_world_size(), flush=True)\n"
        "    print('hosts', dist.distributed_c10d._get_default_store()._underlying_non_prefix_store, flush=True)\n"
        "print([thread.name for thread in threading.enumerate() if thread.name.startswith('ticks-')])\n"
    )
    exit_code, output = run_command(tmp_path, code, program="-c")
    assert exit_code == 0, output
    assert output.count("store None 1\n") == 2, output
    assert output.count("hosts <torch._C._distributed_c10d.HashStore") == 2  # nothing that listens on a port
    assert output.endswith("[]\n")
