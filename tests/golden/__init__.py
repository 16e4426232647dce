"""Golden losses: 20 steps of every strategy and every model, to the last digit, so that a move is seen to change none.

`make golden` compares what the command line gives now with `losses.json`; `make golden ARGS=--write` writes it anew,
which a change of behaviour has to say and explain.
"""

import hashlib
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch

from tests.conftest import REPOSITORY, only_run, run_forked
from ticks.record.metrics import MetricsFile

FILE = Path(__file__).with_name("losses.json")
QUIET = ("test=false", "callbacks=none", "logger=csv", "data.seed=0")
BYTES = ("debug=fast", "model.n_layers=4", "task.sample_bytes=0", *QUIET)
FAST = (*BYTES, "optimizer=adamw")
DIGITS = ("experiment=digits_mlp", "debug=fast", *QUIET)
VIT = ("experiment=digits_vit", "debug=fast", *QUIET)
PHONEMES = ("experiment=g2p", "debug=fast", *QUIET)
PAIRS = ("debug=fast", "data=pairs", "data.path=pairs.tsv", *QUIET)  # which `measure` writes
WORDS_OF_PAIRS = ("model=encoder_decoder", "task=sequence_to_sequence", "data.target_tokens=words", *PAIRS)
VERSES = ("experiment=verses", "data.source_tokens=bpe", "data.target_tokens=bpe", "data.shared_vocabulary=true",
          "data.vocab_size=300", "data.source_length=40", "data.target_length=40", *PAIRS)  # fmt: skip
TOPICS = ("experiment=topics", "debug=fast", "model.n_layers=2", "model.dropout=0.1", *QUIET)
OF_OTHER_DATA = ("mlp", "vit", "encoder", "encoder_decoder", "pretrained", "pretrained_lm")  # with cases of their own
LOSSES = ("train/loss", "val/loss")
TOLERANCE = 2e-3  # relative, on another processor or another torch: their last digits differ, and codes with them


def _stems(folder: str) -> list[str]:
    return sorted(file.stem for file in (REPOSITORY / "configs" / folder).glob("*.yaml") if file.stem != "base")


def cases() -> dict[str, tuple[int, tuple[str, ...]]]:
    """By name: how many workers, and which overrides."""
    strategies = {f"strategy={name}": (2, (*FAST, f"strategy={name}")) for name in _stems("strategy")}
    models = {f"model={name}": (1, (*FAST, f"model={name}")) for name in _stems("model") if name not in OF_OTHER_DATA}
    optimizers = {f"optimizer={name}": (1, (*BYTES, f"optimizer={name}")) for name in _stems("optimizer")}
    schedules = {f"schedule={name}": (1, (*FAST, f"schedule={name}")) for name in _stems("schedule")}
    others = {
        "model/norm=none, model/adapter=ticks": (1, (*FAST, "model/norm=none", "model/adapter=ticks")),
        "dropout, accumulation": (2, (*FAST, "model.dropout=0.1", "trainer.accumulate_grad_batches=2")),
        "three workers": (3, (*FAST, "data.global_batch_size=12", "model=ln_ticks")),
        "digits, a perceptron": (2, DIGITS),
        "digits, a vision transformer": (2, VIT),
        "mnist, a perceptron": (2, ("experiment=mnist_mlp", "debug=fast", *QUIET)),
        "phonemes, an encoder-decoder": (2, PHONEMES),
        "pairs, an encoder-decoder": (2, WORDS_OF_PAIRS),
        "pairs, the choices for verses": (2, VERSES),
        "topics, an encoder": (2, TOPICS),
        "digits, ticks and task norms on a frozen vision transformer": (2, (*VIT, "tuning=ticks_norm")),
        "predictive coding": (1, (*FAST, "task/regulariser=predictive_coding", "task.regulariser.weight=0.1")),
        "half of it pruned": (1, (*FAST, "changes=prune", "changes.prune.share=0.5")),
        "data/tokenizer=bpe": (2, (*FAST, "data/tokenizer=bpe", "data.tokenizer.vocab_size=512")),
    }
    return strategies | models | optimizers | schedules | others


def measure(name: str, directory: Path) -> dict[str, Any]:
    """Losses of one case by step, and a digest of the parameters that it ends with. Its workers are forked here."""
    n, overrides = cases()[name]
    (directory / "pairs.tsv").write_text("\n".join(pairs()))
    code, output = run_forked(n, directory, *overrides)
    assert code == 0, output
    run = only_run(directory)
    rows = MetricsFile(run / "metrics.csv").rows()
    losses = {key: {row["step"]: float(row[key]) for row in rows if row.get(key)} for key in LOSSES}
    state = torch.load(run / "checkpoints" / "final.ckpt", weights_only=True)["state_dict"]
    digest = hashlib.sha256()
    for tensor in state.values():  # in the module's order, whatever their names
        digest.update(tensor.numpy().tobytes())
    return losses | {"parameters": digest.hexdigest()[:16]}


def pairs() -> list[str]:
    """Numbers in figures and in words, a source, a tab and a target each."""
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return [f"number {n}\t{' '.join(words[int(figure)] for figure in str(n))}" for n in range(0, 4000, 7)]


def machine() -> str:
    """What the last digits of a float depend on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{models[0].partition(':')[2].strip() if models else platform.processor()}, torch {torch.__version__}"


def difference(name: str, now: dict[str, Any], then: dict[str, Any], *, exactly: bool) -> str | None:
    """In a line, where two measurements of a case differ first."""
    for key in LOSSES:
        if now[key].keys() != then[key].keys():
            return f"{name}: {key} at steps {', '.join(now[key])} and not {', '.join(then[key])}"
        for step, value in now[key].items():
            was = then[key][step]
            if value != was and (exactly or not math.isclose(value, was, rel_tol=TOLERANCE)):
                return f"{name}: {key} at step {step} is {value!r} and was {was!r}"
    if exactly and now["parameters"] != then["parameters"]:
        return f"{name}: the losses are the same, the parameters at the end are not"
    return None


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text())
