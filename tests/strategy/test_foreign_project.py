"""The strategy in somebody else's project: a plain LightningModule on scikit-learn's digits, run as their script."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn, in the extra dev")
pytestmark = pytest.mark.workers

SCRIPT = """
    import sys
    import torch
    from lightning.pytorch import LightningModule, Trainer, seed_everything
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from ticks.strategy import Outer, TickStrategy

    class Net(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
            )
            digits = load_digits()
            images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            dataset = TensorDataset(images[order], torch.tensor(digits.target)[order])
            self.train_set, self.test_set = torch.utils.data.random_split(
                dataset, [1500, 297], generator=torch.Generator().manual_seed(0))

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = nn.functional.cross_entropy(self.net(x), y)
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log("accuracy", (self.net(x).argmax(1) == y).float().mean(), sync_dist=True)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

        def train_dataloader(self):
            return DataLoader(self.train_set, batch_size=32, shuffle=True)

        def val_dataloader(self):
            return DataLoader(self.test_set, batch_size=297)

    def train(name, strategy):
        seed_everything(1, verbose=False)
        net = Net()
        trainer = Trainer(strategy=strategy, accelerator="cpu", devices=2, max_epochs=3, logger=False,
                          enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0)
        trainer.fit(net)
        digest = sum(p.double().sum().item() for p in net.state_dict().values())
        sys.stdout.write(f"{name}: worker {trainer.global_rank} accuracy {trainer.callback_metrics['accuracy']:.4f}"
                         f" steps {strategy.step} ticks {strategy.ledger.ticks} digest {digest!r}\\n")
        sys.stdout.flush()

    def nesterov(parameters):
        return torch.optim.SGD(parameters, lr=0.7, momentum=0.9, nesterov=True)

    if __name__ == "__main__":
        train("interval", TickStrategy(interval=8))
        train("outer", TickStrategy(interval=8, sync=Outer(nesterov)))
        package = TickStrategy.__module__.partition(".")[0]
        ours = [name for name in sys.modules if name.partition(".")[0] == package]
        beside = {name for name in ours if not name.startswith(f"{package}.strategy")}
        assert beside == {package, f"{package}.arguments"}, beside
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict[str, str]]]:
    """What each worker says at the end of each training, by the training's name."""
    directory = tmp_path_factory.mktemp("foreign")
    script = directory / "somebody_elses.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, str(script)], cwd=directory, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = [line.split(": ") for line in done.stdout.splitlines() if ": worker " in line]
    return [(name, dict(zip(facts.split()[::2], facts.split()[1::2], strict=True))) for name, facts in lines]


@pytest.mark.parametrize("name", ["interval", "outer"])
def test_a_foreign_module_learns_digits(name: str, told: list[tuple[str, dict[str, str]]]) -> None:
    first, second = sorted((facts for of, facts in told if of == name), key=lambda facts: facts["worker"])
    steps, ticks = 3 * 24, 3 * 24 // 8  # 1500 samples, 750 each, batches of 32
    for rank, facts in enumerate((first, second)):
        assert (int(facts["worker"]), int(facts["steps"]), int(facts["ticks"])) == (rank, steps, ticks)
        assert float(facts["accuracy"]) > 0.7  # chance is 0.1
    assert first["digest"] == second["digest"]
    assert first["accuracy"] == second["accuracy"]
