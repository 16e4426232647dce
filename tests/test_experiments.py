"""Every experiment under the strategies that ask most of a model: one cuts it into layers, one into matrices, one
averages what its optimizer remembers."""

import json
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, only_run, run_forked

SMALL = (
    "debug=fast", "trainer.max_steps=4", "trainer.val_check_interval=4", "trainer.limit_val_batches=1", "test=false",
    "data.eval_batch_size=8", "data.global_batch_size=8",
)  # fmt: skip
# the default model, larger; g2p's model, on data that take long to prepare; what test_fine_tuning and test_phases do
NOT_HERE = {"bbc_long", "verses", "finetune_minilm", "finetune_bbc", "pretrain_bbc", "continue_smollm",
            "pretrain_then_finetune"}  # fmt: skip
EXPERIMENTS = sorted({file.stem for file in (REPOSITORY / "configs" / "experiment").glob("*.yaml")} - NOT_HERE)
CASES = [(name, "streaming_diloco", "strategy.clock.interval=4") for name in EXPERIMENTS] + [
    (name, *how) for name in ("digits_vit",) for how in (("powersgd", ""), ("desloc", "strategy.clock.interval=2"))
]


@pytest.mark.parametrize(("experiment", "strategy", "more"), CASES)
def test_it_trains_with_two_workers(experiment: str, strategy: str, more: str, tmp_path: Path) -> None:
    code, output = run_forked(2, tmp_path, f"experiment={experiment}", f"strategy={strategy}", *more.split(), *SMALL)
    assert code == 0, output
    about = json.loads((only_run(tmp_path) / "summary.json").read_text())
    assert (about["status"], about["steps"], about["strategy"]) == ("finished", 4, strategy)
    assert about["bytes_sent_per_worker"] > 0
