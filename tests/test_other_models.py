"""Images and recurrent networks from the command line: two workers, resumed exactly, the augmentation's draws too."""

import json
from pathlib import Path

import kornia.augmentation  # noqa: F401 - once here, so that forked commands need not
import pytest
import torch

from tests.conftest import Command, free_port, only_run

FAST = ("debug=fast", "strategy=local_sgd", "trainer.devices=2", "test=false", "trainer.max_steps=12",
        "trainer.log_every_n_steps=5", "callbacks.checkpoint.every_n_train_steps=7")  # fmt: skip
RUNS = {
    "vit": ("experiment=digits_vit", "data=mnist", "data.augment.erase=0.5",
            "model.patch_size=7", "model.pooling=first", "model/norm=rms_norm", "model/adapter=ticks"),
    "rnn": ("experiment=bbc_rnn", "model.cell=lstm", "model.d_model=16", "model.n_layers=2", "task.sample_bytes=5"),
}  # fmt: skip


def two_workers(directory: Path, *arguments: str) -> str:
    """What worker 0 prints; both are forked here, as golden losses are measured."""
    port, commands = str(free_port()), []
    for rank in "01":
        here = directory / rank
        here.mkdir(parents=True, exist_ok=True)
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
        commands.append(Command(here, *arguments, env=environment | {"LOCAL_RANK": rank, "RANK": rank}))
    for command in commands:
        assert command.end() == 0, command.output
    return commands[0].output


@pytest.mark.parametrize("name", RUNS)
def test_it_trains_with_two_workers_and_is_resumed_exactly(name: str, tmp_path: Path) -> None:
    output = two_workers(tmp_path, *RUNS[name], *FAST)
    run = only_run(tmp_path / "0")
    about = json.loads((run / "summary.json").read_text())
    assert (about["status"], about["world_size"], about["steps"], about["ticks"]) == ("finished", 2, 12, 2)
    assert about["norm"] == ("rms_norm" if name == "vit" else "layer_norm")
    assert ("nearest neighbour, for comparison" if name == "vit" else "bigram model, for comparison") in output
    final = run / "checkpoints" / "final.ckpt"
    whole = torch.load(final, weights_only=True)["state_dict"]
    for file in run.glob("checkpoints/*"):
        if "step-00000007" not in file.name:
            file.unlink() if file.is_file() else None
    output = two_workers(tmp_path, f"resume={run}")
    assert "step-00000007.ckpt" in output
    again = torch.load(final, weights_only=True)["state_dict"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)
