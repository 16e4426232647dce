"""Which keys tell runs apart, what belongs together, what each is compared with."""

from pathlib import Path
from typing import Any

import pytest

from tests.report.made import grid, run
from ticks.config import ConfigError
from ticks.report.groups import Group, baseline_of, choose, differing, group
from ticks.report.runs import load_runs


def test_groups_differ_in_what_was_swept_and_hold_every_seed(tmp_path: Path) -> None:
    runs = load_runs([grid(tmp_path)])
    assert differing(runs) == ["model", "strategy.clock.interval"]
    groups = group(runs)
    assert [found.values for found in groups] == [
        {"model": norm, "strategy.clock.interval": interval} for norm in ("ln", "rms") for interval in (1, 16)
    ]
    assert all(list(found.of("val_bits_per_byte")) == [0, 1, 2] for found in groups)


def test_keys_that_follow_from_others_are_left_out_and_typed_ones_win(tmp_path: Path) -> None:
    """`model=rms` changes model/norm and what lies below it: the name says it all."""
    a = run(
        tmp_path / "a",
        config={"model": {"norm": {"_target_": "A", "eps": 1}}},
        choices={"model/norm": "a", "model": "m"},
    )
    b = run(tmp_path / "b", config={"model": {"norm": {"_target_": "B"}}}, choices={"model/norm": "b", "model": "n"})
    c = run(tmp_path / "c", config={"model": {"norm": {"_target_": "B"}}}, choices={"model/norm": "b", "model": "n"},
            typed={"model/norm": "b"})  # fmt: skip
    assert differing(load_runs([a, b])) == ["model"]
    assert differing(load_runs([a, c])) == ["model/norm"]
    d = run(
        tmp_path / "d",
        config={"model": {"norm": {"_target_": "B"}, "width": 3}},
        choices={"model/norm": "b", "model": "n"},
    )
    assert differing(load_runs([a, b, d])) == ["model", "model.width"]


@pytest.mark.parametrize(
    "config",
    [
        {"name": "other"}, {"data": {"seed": 1}}, {"logger": {"wandb": {"id": "x"}}}, {"test": False},
        {"callbacks": {"checkpoint": {"dirpath": "elsewhere"}}}, {"task": {"sample_bytes": 0}},
        {"trainer": {"default_root_dir": "B/x"}, "run_dir": "B"},
    ],
)  # fmt: skip
def test_what_makes_no_other_experiment_tells_nothing_apart(config: dict, tmp_path: Path) -> None:
    other = {"trainer": {"default_root_dir": "A/x"}, "run_dir": "A"} if "trainer" in config else {}
    a, b = run(tmp_path / "a", config={"x": 1} | other), run(tmp_path / "b", config={"x": 1} | config, seed=1)
    assert differing(load_runs([a, b])) == []
    (found,) = group(load_runs([a, b]))
    assert (found.name, len(found.runs)) == ("all runs", 2)


def test_runs_without_a_configuration_are_told_apart_by_their_summaries(tmp_path: Path) -> None:
    runs = load_runs([run(tmp_path / "a"), run(tmp_path / "b", norm="layer_norm"), run(tmp_path / "c", seed=1)])
    groups = group(runs)
    assert [found.values for found in groups] == [{"model/norm": "layer_norm"}, {"model/norm": "rms_norm"}]
    assert [len(found.runs) for found in groups] == [1, 2]


def test_by_says_how(tmp_path: Path) -> None:
    runs = load_runs([grid(tmp_path)])
    keys = ["world_size", "strategy.clock.interval", "model"]
    assert [found.name for found in group(runs, keys)][:2] == [
        "world_size=4, strategy.clock.interval=1, model=ln", "world_size=4, strategy.clock.interval=1, model=rms"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"by=model: runs of model=ln differ in strategy\.clock\.interval as well"):
        group(runs, ["model"])
    with pytest.raises(ConfigError, match=r"no run has 'modle'; did you mean 'model'\?"):
        group(runs, ["modle"])


def test_numbers_come_by_size(tmp_path: Path) -> None:
    for interval in (64, 8, 128):
        run(tmp_path / str(interval), interval=interval)
    assert [found.values["strategy.clock.interval"] for found in group(load_runs([tmp_path]))] == [8, 64, 128]


def test_what_came_to_nothing_is_counted(tmp_path: Path) -> None:
    for seed, status in enumerate(("finished", "diverged", "failed", "failed", "stopped", "running")):
        run(tmp_path / str(seed), status=status, seed=seed)
    (found,) = group(load_runs([tmp_path]))
    assert found.failures() == {"diverged": 1, "failed": 3, "stopped": 1}  # nobody holds the lock of what runs
    assert found.of("val_bits_per_byte") == {0: 2.345}


def test_the_same_run_twice_is_one_observation(tmp_path: Path) -> None:
    for name, bits in (("a", 2.0), ("b", 2.5)):
        run(tmp_path / name, val_bits_per_byte=bits)
    (found,) = group(load_runs([tmp_path, tmp_path / "a"]))  # named twice, it counts once
    assert (found.of("val_bits_per_byte"), found.repeated()) == ({0: 2.5}, 1)


def test_each_is_compared_with_what_is_the_same_but_for_the_key(tmp_path: Path) -> None:
    groups = group(load_runs([grid(tmp_path)]))
    find = baseline_of(groups, "strategy.clock.interval=1")
    assert [base and base.name for base in map(find, groups)] == [
        None, "model=ln, strategy.clock.interval=1", None, "model=rms, strategy.clock.interval=1"
    ]  # fmt: skip
    find = baseline_of(groups, "model=ln")
    assert [base and base.values["strategy.clock.interval"] for base in map(find, groups)] == [None, None, 1, 16]


def test_one_baseline_serves_all_that_have_no_own(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "ddp", strategy="ddp", interval=None),
        run(tmp_path / "8"),
        run(tmp_path / "16", interval=16),
    ]
    groups = group(load_runs(runs))
    find = baseline_of(groups, "strategy=ddp")
    assert sorted(base.name if base else "-" for base in map(find, groups))[0] == "-"
    assert sum(find(found) is not None for found in groups) == 2


def test_what_a_baseline_does_not_know_cannot_differ_and_what_it_knows_must_not(tmp_path: Path) -> None:
    """DDP has no interval; but with another optimizer it is another baseline."""
    for optimizer in ("adamw", "muon"):
        for strategy, interval in (("ddp", None), ("ticks", 4), ("ticks", 8)):
            if (optimizer, strategy) != ("muon", "ddp"):
                clock = {"clock": {"interval": interval}} if interval else {"x": 1}
                run(
                    tmp_path / f"{optimizer}{strategy}{interval}",
                    config={"strategy": clock},
                    strategy=strategy,
                    choices={"optimizer": optimizer, "strategy": strategy},
                    typed={"optimizer": optimizer} | ({"strategy.clock.interval": interval} if interval else {}),
                )
    groups = group(load_runs([tmp_path]), also=["strategy"])
    find = baseline_of(groups, "strategy=ddp")
    found = {one.name: base.values["optimizer"] if (base := find(one)) else None for one in groups}
    assert {name: base for name, base in found.items() if "ticks" in name} == {
        f"optimizer={name}, strategy.clock.interval={interval}, strategy=ticks": base
        for name, base in (("adamw", "adamw"), ("muon", None)) for interval in (4, 8)
    }  # fmt: skip


def test_a_number_is_found_however_it_is_written(tmp_path: Path) -> None:
    for interval in (1, 8):
        run(tmp_path / str(interval), interval=interval)
    groups = group(load_runs([tmp_path]))
    assert baseline_of(groups, "strategy.clock.interval=1.0")(groups[1]) is groups[0]


@pytest.mark.parametrize(
    ("key", "values", "tells"),
    [("data.seed", (7, 8), True), ("callbacks.ema.decay", (0.9, 0.99), True), ("strategy.clock.interval", (1, 8), True),
     ("callbacks.checkpoint.every", (1, 2), False), ("where", ("1", "8"), False)],
)  # fmt: skip
def test_what_changes_training_tells_runs_apart(key: str, values: tuple, tells: bool, tmp_path: Path) -> None:
    """Though it is called seed, lies below callbacks, or has the digits of a directory's name in it."""
    for place, value in zip("18", values, strict=True):
        node: dict = {}
        inner = node
        *above, last = key.split(".")
        for name in above:
            inner = inner.setdefault(name, {})
        inner[last] = value
        run(tmp_path / place, config=node | {"run_dir": place})
    assert differing(load_runs([tmp_path])) == ([key] if tells else [])


def test_a_baseline_that_is_not_there_is_refused(tmp_path: Path) -> None:
    groups = group(load_runs([grid(tmp_path)]))
    with pytest.raises(ConfigError, match=r"against=model=ddp: no group has it; model is ln, rms"):
        baseline_of(groups, "model=ddp")
    with pytest.raises(ConfigError, match=r"told apart by model, strategy.clock.interval, not by optimizer"):
        baseline_of(groups, "optimizer=adamw")


def swept(folder: Path, **values: list[float | None]) -> list:
    """A run for each learning rate of each model, with seeds 0 and 1; None is one whose first seed failed."""
    for model, losses in values.items():
        for i, loss in enumerate(losses):
            for seed in (0, 1):
                learnt(folder / f"{model}-{i}-{seed}", model, 0.1 * 2**i, seed, None if loss is None and not seed
                       else (loss or 0.5) + seed / 100)  # fmt: skip
    return load_runs([folder])


def learnt(place: Path, model: str, lr: float, seed: int, loss: float | None, **more: Any) -> None:
    said = {"status": "failed"} if loss is None else {}
    run(place, seed=seed, measure="loss", better="lower", val_loss=loss, choices={"model": model},
        config={"optimizer": {"lr": lr}} | more, typed={"optimizer.lr": lr}, **said)  # fmt: skip


def chosen_of(folder: Path, *keys: str, by: tuple[str, ...] = ()) -> tuple[list[Group], list[str]]:
    best = keys or ("optimizer.lr",)
    return choose(group(load_runs([folder]), by, best=best), best, "val_loss", "lower")


def test_each_is_compared_at_the_best_of_a_key(tmp_path: Path) -> None:
    groups = group(swept(tmp_path, ln=[2.0, 1.0, 1.5], rms=[1.7, 1.6, 1.5]))
    assert len(groups) == 6
    chosen, said = choose(groups, ["optimizer.lr"], "val_loss", "lower")
    assert [(found.values, found.chosen) for found in chosen] == [
        ({"model": "ln"}, {"optimizer.lr": 0.2}), ({"model": "rms"}, {"optimizer.lr": 0.4}),
    ]  # fmt: skip
    assert said[1:] == ["model=ln: the best of 3",
                        "model=rms: the best of 3; optimizer.lr=0.4 is the largest that was tried"]  # fmt: skip
    downwards, _ = choose(groups, ["optimizer.lr"], "val_loss", "higher")
    assert [found.chosen["optimizer.lr"] for found in downwards] == [0.1, 0.1]
    find = baseline_of(chosen, "model=ln")
    assert find(chosen[1]) is chosen[0], "though their learning rates differ"


def test_what_failed_once_is_not_the_best_and_that_is_said(tmp_path: Path) -> None:
    swept(tmp_path, ln=[2.0, None, 1.5])
    (found,), said = chosen_of(tmp_path)
    assert found.chosen == {"optimizer.lr": 0.4}
    assert len(found.of("val_loss")) == 2
    assert said[1].endswith("optimizer.lr=0.2 was better where it has a result, for 1 of 2 seeds")
    learnt(tmp_path / "again", "ln", 0.2, 0, 0.5)  # what failed once, and then did not
    assert chosen_of(tmp_path)[0][0].chosen == {"optimizer.lr": 0.2}


def test_a_lucky_seed_alone_is_not_the_best(tmp_path: Path) -> None:
    for seed, loss in enumerate((0.7, 0.72, 0.78)):
        learnt(tmp_path / f"a{seed}", "ln", 0.1, seed, loss)
    learnt(tmp_path / "b", "ln", 0.2, 0, 0.5)
    assert chosen_of(tmp_path)[0][0].chosen == {"optimizer.lr": 0.1}


def test_nothing_that_came_to_a_result_is_no_best(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        learnt(tmp_path / str(lr), "ln", lr, 0, None)
    assert chosen_of(tmp_path)[1][1] == "all runs: no run of 2 values came to a result"


def test_methods_with_values_of_their_own_stay_apart(tmp_path: Path) -> None:
    for model, lrs in {"adamw": (1e-4, 1e-3), "muon": (1e-2, 2e-2)}.items():
        for lr in lrs:
            learnt(tmp_path / f"{model}{lr}", model, lr, 0, lr)
    chosen, _ = chosen_of(tmp_path)
    assert [(found.values, found.chosen) for found in chosen] == [
        ({"model": "adamw"}, {"optimizer.lr": 1e-4}), ({"model": "muon"}, {"optimizer.lr": 1e-2}),
    ]  # fmt: skip


def test_what_differs_with_it_is_not_chosen_beside_it(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        learnt(tmp_path / str(lr), "ln", lr, 0, lr, schedule={"warmup": 100 * lr})
    chosen, _ = chosen_of(tmp_path)
    assert [found.values for found in chosen] == [{"schedule.warmup": 10.0}, {"schedule.warmup": 20.0}]
    with pytest.raises(ConfigError, match=r"best=optimizer\.lr: .* differ in schedule\.warmup as well"):
        chosen_of(tmp_path, by=("model",))
