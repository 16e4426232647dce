"""The program that counts faults: it notices what breaks a promise, and a few of its trials, which must hold."""

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.faults import damage, mutations, runs, signals
from tests.faults.__main__ import command_line
from tests.faults.kept import Kept, difference
from tests.faults.outcome import Ledger, Outcome
from tests.faults.plan import PRESETS, SIGNALS, TARGETS, Moment, Trial, trial, trials
from tests.faults.table import markdown
from tests.faults.trials import run_trial

# ---- the plan -----------------------------------------------------------------------------------------------------


def test_a_trial_of_a_seed_is_always_the_same_whatever_else_is_run() -> None:
    assert [trial(k, 3) for k in range(50)] == [trial(k, 3) for k in range(50)]
    assert trials(5, 3, ("SIGKILL",)) == [t for t in (trial(k, 3) for k in range(100)) if t.fault == "SIGKILL"][:5]
    assert trial(7, 3) != trial(7, 4)
    assert trial(7, 3).draw().random() == trial(7, 3).draw().random()


def test_a_thousand_trials_meet_every_preset_with_every_signal_and_target_and_300_mutations() -> None:
    planned = trials(1000, 0)
    met = {(t.preset, t.fault, t.target) for t in planned}
    assert {(p, s, t) for p in PRESETS for s in SIGNALS for t in TARGETS} <= met
    assert sum(t.fault == "mutation" for t in planned) == 300
    overrides = {mutations.mutation(t.draw(), "ticks") for t in planned if t.fault == "mutation"}
    assert len(overrides) > 200
    assert {t.workers for t in planned} == {1, 2, 3}
    assert {t.start for t in planned} == {"forked", "real"}
    assert "wandb killed" in {t.fault for t in planned}


def test_the_command_line_chooses_trials() -> None:
    assert [t.number for t in command_line(["--trial", "12"]).planned] == [12]
    assert {t.fault for t in command_line(["--only", "sigint, mutation", "--trials", "30"]).planned} == {
        "SIGINT", "mutation",
    }  # fmt: skip
    with pytest.raises(SystemExit):
        command_line(["--only", "nothing"])


# ---- what it must notice ------------------------------------------------------------------------------------------

FAKE = """
import os, shutil, signal, subprocess, sys, time
behaviour, prepared = os.environ["FAKE"], os.environ["PREPARED"]
if "resume" in sys.argv:
    os.makedirs("logs/runs/fake/checkpoints", exist_ok=True)
    end = "other" if behaviour == "inexact" else "final"
    shutil.copy(f"{prepared}/{end}.ckpt", "logs/runs/fake/checkpoints/final.ckpt")
    sys.exit(3 if behaviour == "does not resume" else 0)
if behaviour == "leaves a process":
    subprocess.Popen(["sleep", "60"], start_new_session=True)
def stop(signum, frame):
    if behaviour == "trace":
        print("Traceback (most recent call last):")
    sys.exit(0 if behaviour == "wrong code" else 128 + signum)
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stays" else stop)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of a script that breaks one promise, as a trial that sends it SIGTERM."""
    (tmp_path / "fake.py").write_text(FAKE)
    state = {"optimizer_states": [], "lr_schedulers": [], "global_step": 1}
    torch.save(state | {"state_dict": {"w": torch.zeros(3)}}, tmp_path / "final.ckpt")
    torch.save(state | {"state_dict": {"w": torch.tensor([0.0, 0.0, 1e-9])}}, tmp_path / "other.ckpt")
    monkeypatch.setitem(runs.SCRIPTS, "lightning", tmp_path / "fake.py")
    monkeypatch.setattr(signals, "TO_LEAVE", 1.0)
    monkeypatch.setattr(Kept, "reference", lambda *args, **options: (tmp_path / "final.ckpt", 1.0))
    monkeypatch.setattr(runs.Run, "_has_begun", lambda self, phase: phase in self.output)

    def run(behaviour: str) -> Outcome:
        kept = Kept(tmp_path / "kept")
        kept.env |= {"FAKE": behaviour, "PREPARED": str(tmp_path)}
        planned = Trial(0, 0, "SIGTERM", "main", "ddp", start="real", moment=Moment(phase="ready"), system="lightning")
        return signals.run(planned, tmp_path / "run", kept)

    return run


def test_a_run_that_keeps_every_promise_is_held(fake: Any) -> None:
    outcome = fake("as it should")
    assert outcome.held, outcome.broken
    assert (outcome.left, outcome.exact) == ([], True)
    assert 0 < outcome.seconds < 1


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("leaves a process", "left behind: ['"),
        ("stays", "something was alive 1 s after"),
        ("wrong code", "exit code 0 of a run that did not finish"),
        ("trace", "a stack trace"),
        ("inexact", "resumed, it ended elsewhere: state_dict.w"),
        ("does not resume", "the resumed run ended with 3"),
    ],
)
def test_a_broken_promise_is_not_held(behaviour: str, why: str, fake: Any) -> None:
    outcome = fake(behaviour)
    assert not outcome.held
    assert any(reason.startswith(why) for reason in outcome.broken), outcome.broken
    line = markdown([outcome], "faults")
    assert "| SIGTERM | main | 1 | 0 |" in line
    assert "`--seed 0 --trial 0 --system lightning` SIGTERM, main" in line


def test_an_executed_payload_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = tmp_path / "stopped" / "logs" / "runs" / "r" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save({}, checkpoints / "stopped.ckpt")
    monkeypatch.setattr(Kept, "stopped", lambda *_: tmp_path / "stopped")
    monkeypatch.setattr(signals, "resume", lambda *_: "")
    planned = Trial(0, 0, "checkpoint payload", "newest", "ticks")
    assert damage.run(planned, tmp_path / "safe", Kept(tmp_path / "kept")).held

    def careless(_: Trial, directory: Path, *more: Any) -> str:
        file = directory / "logs" / "runs" / "r" / "checkpoints" / "stopped.ckpt"
        torch.load(file, weights_only=False, pickle_module=pickle)
        return ""

    monkeypatch.setattr(signals, "resume", careless)
    outcome = damage.run(planned, tmp_path / "careless", Kept(tmp_path / "kept"))
    assert outcome.broken == ["the payload was executed"]


def test_final_checkpoints_are_compared_with_every_workers_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        state = {"state_dict": {"w": torch.ones(2)}, "optimizer_states": [], "lr_schedulers": [], "global_step": 1}
        torch.save(state, tmp_path / f"{name}.ckpt")
        (tmp_path / f"{name}.workers").mkdir()
        for rank in range(2):
            own = {"parameters": None, "random": [torch.tensor([rank])], "ledger": {"seconds": ord(name)}}
            torch.save(own, tmp_path / f"{name}.workers" / f"token{name}-rank{rank}.pt")
    assert difference(tmp_path / "a.ckpt", tmp_path / "b.ckpt") is None
    torch.save({"parameters": None, "random": [torch.tensor([7])]}, tmp_path / "b.workers" / "tokenb-rank1.pt")
    assert difference(tmp_path / "a.ckpt", tmp_path / "b.ckpt") == "worker 1's random.0"
    (tmp_path / "b.workers" / "tokenb-rank1.pt").unlink()
    assert "workers' files are" in str(difference(tmp_path / "a.ckpt", tmp_path / "b.ckpt"))


@pytest.mark.parametrize(
    ("code", "output", "why"),
    [
        (2, "error: seed=-1 must be a whole number\n", None),
        (1, "run directory x\nerror: worker 0's training loss was nan\n", None),
        (2, "error: one\nerror: two\n", "2 messages"),
        (1, "Traceback (most recent call last):\nKeyError: 'x'\n", "a stack trace (KeyError: 'x')"),
        (-6, "error: one\n", "exit code -6"),
        (0, "", "exit code 0 without a finished run"),
    ],
)
def test_a_mutation_is_refused_in_one_message_or_not_held(
    code: int, output: str, why: str | None, tmp_path: Path
) -> None:
    outcome = Outcome(trial(1, 0))
    mutations.judge(SimpleNamespace(code=code, output=output, directory=tmp_path), outcome, told_to_stop=False)
    assert outcome.held if why is None else any(why in reason for reason in outcome.broken), outcome.broken


def test_numbers_that_are_not_finite_are_not_a_correct_run(tmp_path: Path) -> None:
    run = tmp_path / "logs" / "runs" / "r"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "summary.json").write_text('{"status": "finished"}')
    (run / "metrics.csv").write_text("step,train/loss,lr\n1,2.5,nan\n2,nan,1\n")
    outcome = Outcome(trial(1, 0))
    mutations.judge(SimpleNamespace(code=0, output="", directory=tmp_path), outcome, told_to_stop=False)
    assert outcome.broken == ["exit code 0 with a loss that is not finite"]


def test_a_measurement_goes_on_behind_what_is_known(tmp_path: Path) -> None:
    planned = [trial(n, 0) for n in range(3)]
    ledger = Ledger(tmp_path / "work" / "outcomes.jsonl")
    first = Outcome(planned[0], seconds=1.5, exact=True)
    second = Outcome(planned[1], broken=["a stack trace"], left=["1 (S) python"], note="seed=-1")
    for outcome in (first, second):
        ledger.write(outcome)
    assert ledger.read(planned) == {planned[0]: first, planned[1]: second}
    assert not ledger.read([trial(0, 1), trial(0, 0, "lightning")])


# ---- a few trials -------------------------------------------------------------------------------------------------

TRAINING = Moment(phase="checkpoint", delay=0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("faults")
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.workers
@pytest.mark.parametrize(
    "planned",
    [
        Trial(1, 0, "SIGKILL", "main", "ticks", 1, moment=TRAINING),
        Trial(2, 0, "SIGINT", "main", "ticks", 1, moment=TRAINING, resume="auto"),
        Trial(3, 0, "checkpoint side file payload", "side file", "ticks", 1),
        Trial(4, 0, "checkpoint truncated", "newest", "ticks", 1, resume="auto"),
        Trial(5, 0, "disk full", "run directory", "ticks", 1, moment=TRAINING),
        Trial(6, 0, "mutation", "configuration", "diloco", 1),
    ],
    ids=str,
)
def test_a_few_faults_are_held(planned: Trial, root: Path) -> None:
    outcome = run_trial(planned, root)
    assert outcome.held, outcome.broken
