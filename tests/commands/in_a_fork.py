"""What a fork does under its new name; test_fork.py makes one and runs this there, pytest by itself passes it over."""

import json
import re
from pathlib import Path

from tests.conftest import NAME, REPOSITORY, only_run, run_command
from ticks.config import locate


def test_every_target_of_its_configuration_is_there() -> None:
    texts = [file.read_text() for file in (REPOSITORY / "configs").rglob("*.yaml")]
    targets = {target for text in texts for target in re.findall(r"_target_: ([\w.]+)", text)}
    assert all(callable(locate(target)) for target in targets)
    assert len([target for target in targets if target.startswith(f"{NAME}.")]) > 30


def test_its_command_is_known(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, "evl", program="ticks")
    assert (code, output.count("\n")) == (2, 1), output


def test_two_workers_train_as_the_articles_say(tmp_path: Path) -> None:
    small = ("debug=fast", "trainer.max_steps=8", "test=false", "task.sample_bytes=0", "trainer.limit_val_batches=1")
    code, output = run_command(tmp_path, *small, "model=ln_ticks", "strategy=ticks", "trainer.devices=2")
    assert code == 0, output
    about = json.loads((only_run(tmp_path) / "summary.json").read_text())
    assert (about["strategy"], about["adapter"], about["ticks"], about["world_size"]) == ("ticks", "ticks", 1, 2)
    assert NAME in about["versions"]
