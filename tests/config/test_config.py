"""Every YAML file composes and builds, and every mistake gets one message that names it and what would be valid."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY, run_command
from tests.models.pretrained_made import write_bert, write_llama
from ticks.assemble import parts
from ticks.config import (
    ConfigError,
    build,
    check_sweep,
    check_targets,
    compose_strictly,
    digest,
    plain,
    quoted,
    with_home_directory,
)
from ticks.config.digest import LATER
from ticks.record import summary
from ticks.run_directory import find_unfinished
from ticks.strategy.workers import WorkerStrategy

CONFIGS = REPOSITORY / "configs"
TINY = ["debug=fast"]


def composed(*overrides: str, configs: Path = CONFIGS) -> Any:
    return compose_strictly(overrides, configs)


def checked(*overrides: str, configs: Path = CONFIGS) -> Any:
    config = composed(*overrides, configs=configs)
    check_targets(config)
    return config


def choices() -> list[list[str]]:
    """One list of overrides per file in configs/ (sweeps have their own tests)."""
    files = [file.relative_to(CONFIGS).with_suffix("") for file in sorted(CONFIGS.rglob("*.yaml"))]
    return [
        [f"{file.parent}={file.stem}"] if file.parent != Path(".") else []
        for file in files
        if file.parts[0] != "sweep" and file.stem != "base"
    ]


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A copy of configs/ to change."""
    return Path(shutil.copytree(CONFIGS, tmp_path / "configs"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """What is given as data.path: a text, pairs, a table, and a folder of 20 black images of 4 x 4 pixels per split."""
    written = {
        "text.txt": "".join(f"Sentence {i} of a text.\n\n" for i in range(2000)),
        "pairs.tsv": "".join(f"{i}\t{i + 1}\n" for i in range(300)),
        "table.csv": "text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(200)),
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    (folder := tmp_path / "idx").mkdir()
    for split in ("train", "t10k"):
        sizes = b"".join(n.to_bytes(4, "big") for n in (20, 4, 4))
        (folder / f"{split}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sizes + bytes(20 * 4 * 4))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + sizes[:4] + bytes([0, 1] * 10))
    return {f"data={name.partition('.')[0]}": tmp_path / name for name in (*written, "idx")}


def messages(error: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


TOGETHER = (  # data, model and task that belong together, and what can stand in their places
    ("data=digits", "model=mlp", "task=classification", "data=idx", "data=mnist", "data/augment=", "model=vit"),
    ("data=topics", "model=encoder", "task=classification", "data=table"),
    ("data=pairs", "model=encoder_decoder", "task=transcription", "task=sequence_to_sequence", "data=cmudict",
     "data=bible"),
)  # fmt: skip


PRETRAINED = {  # what goes with each, a model of those that tests make among it
    "model=pretrained": "data=topics data/tokenizer=pretrained task=classification pretrained=BERT",
    "data/tokenizer=pretrained": "data=topics model=pretrained task=classification pretrained=BERT",
    "tuning=head": "data=digits model=vit task=classification",
    "model=pretrained_lm": "data/tokenizer=pretrained pretrained=LLAMA",
    "experiment=finetune_bbc": "pretrained=BERT",
    "experiment=continue_smollm": "pretrained=LLAMA data.block_size=32",
}
LARGE = {  # data that take seconds to prepare
    "data=bible", "data=cmudict", "data=topics", "data/tokenizer=bpe", "experiment=verses", "experiment=g2p",
    "experiment=topics",
}  # fmt: skip


def with_what_belongs_to_it(choice: list[str]) -> list[str]:
    if choice and choice[0] in PRETRAINED:
        return PRETRAINED[choice[0]].split() + choice
    group, _, name = choice[0].partition("=") if choice else ("", "", "")
    for kind in TOGETHER:
        if f"{group}={name}" in kind or f"{group}=" in kind:
            return [other for other in kind[:3] if other.partition("=")[0] != group] + choice
    return list(choice)


# ---- every file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [pytest.param(choice, marks=pytest.mark.workers if {*choice} & LARGE else ()) for choice in choices()],
    ids=lambda choice: choice[0] if choice else "train.yaml",
)
def test_every_yaml_builds_what_it_describes(
    choice: list[str], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = with_what_belongs_to_it(choice)
    of_data = next((override for override in overrides if override.startswith("data=")), "")
    overrides += [f"data.path={files[of_data]}"] if of_data in files else []
    overrides += ["data.text=text", "data.label=label"] if of_data == "data=table" else []
    for name, write in (("BERT", write_bert), ("LLAMA", write_llama)):
        if f"pretrained={name}" in overrides:
            overrides[overrides.index(f"pretrained={name}")] = f"pretrained={write(tmp_path / name)}"
    own_sizes = any(f"model={name}" in overrides for name in ("mlp", "vit", "pretrained", "pretrained_lm"))
    own_sizes = own_sizes or any(o.startswith(("experiment", "debug")) for o in choice)
    tiny = ["trainer.devices=1"] if own_sizes else ["model.d_model=32", "model.n_layers=1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = composed(*tiny, *overrides)
    config.run_dir = str(tmp_path)
    check_targets(config)
    made = parts(config, {})
    data: Any = made.data
    task = made.task
    strategy = build(config.strategy, "strategy")
    callbacks = [build(node, f"callbacks.{name}") for name, node in config.callbacks.items() if node]
    loggers = [build(node, f"logger.{name}") for name, node in config.logger.items() if node]
    assert isinstance(data, LightningDataModule)
    assert isinstance(task, LightningModule)
    assert isinstance(strategy, WorkerStrategy)
    assert all(isinstance(callback, Callback) for callback in callbacks)
    assert all(isinstance(logger, Logger) for logger in loggers)
    trainer = build(
        config.trainer, "trainer", strategy=strategy, callbacks=callbacks, logger=loggers, enable_checkpointing=True
    )
    assert isinstance(trainer, Trainer)
    data.prepare_data()
    if "target_vocab_size" in data.shape:
        batch = data.collate(data.samples("val")[:3])
        logits_BxTxV = task(batch["source"], batch["target"][:, :-1])
        assert logits_BxTxV.shape == (3, batch["target"].shape[1] - 1, data.shape["target_vocab_size"])
    elif "n_classes" in data.shape:
        assert task(data.datasets["val"][0][0][None]).shape == (1, data.shape["n_classes"])
    else:
        assert data.load().n_bytes["train"] > config.data.block_size
        tokens_BxT = torch.randint(data.shape["vocab_size"], (2, config.data.block_size))
        assert task(tokens_BxT).shape == (2, config.data.block_size, data.shape["vocab_size"])
    assert plain(config)


def test_the_choices_reach_what_is_built() -> None:
    config = checked(*TINY, "model=rms_ticks", "model.adapter.width=5", "strategy.clock.interval=3")
    model = build(config.model, "model", vocab_size=256, block_size=64)
    assert {type(block.norm1).__name__ for block in model.blocks} == {"RMSNorm"}
    assert model.blocks[0].adapter.down.weight.shape[0] == 5
    assert build(config.strategy, "strategy").clock.interval == 3
    bare = build(checked(*TINY, "model=no_norm").model, "model", vocab_size=256, block_size=64)
    assert isinstance(bare.final_norm, torch.nn.Identity)


def test_several_loggers_can_be_chosen_at_once() -> None:
    assert set(composed("logger=[wandb,tensorboard]").logger) == {"wandb", "tensorboard"}


def test_a_seed_of_zero_is_respected() -> None:
    config = composed("seed=0")
    assert (config.seed, config.data.seed) == (0, 0)
    assert composed("seed=3").data.seed == 3
    assert digest(composed("seed=0")) == digest(composed())


# ---- mistakes in keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seeed=1"], "unknown key 'seeed' (value 1); did you mean 'seed'? valid: callbacks, changes, data"),
        (["+foo=1"], "unknown key 'foo'; valid: callbacks, changes, data"),
        (["+seeed=1"], "unknown key 'seeed'; did you mean 'seed'?"),
        (["++seeed=1"], "unknown key 'seeed'; did you mean 'seed'?"),
        (["~seeed"], "~seeed: there is no such key, or it is null already"),
        (["~resume"], "~resume: there is no such key, or it is null already"),
        (["modle=ln"], "unknown key 'modle' (value 'ln'); did you mean 'model'?"),
        (["trainer.max_stepss=3"], "unknown key 'trainer.max_stepss' (value 3); did you mean 'max_steps'?"),
        (["trainer.deterministic=true"], "is added with a +: +trainer.deterministic=true"),
        (["+trainer.max_steps=3"], "'trainer.max_steps' is there already, so without the +: trainer.max_steps=3"),
        (["++trainer.max_stepss=3"], "lightning.pytorch.Trainer takes no 'max_stepss'; did you mean 'max_steps'?"),
        (["trianer.max_steps=3"], "did you mean 'trainer'?"),
        (["strategy.clock.intervl=3"], "did you mean 'interval'? valid: _target_, interval"),
        (["model=ln_ticks", "model.adapter.widht=3"], "did you mean 'width'? valid: _partial_, _target_, activation"),
        (["strategy=ddp", "strategy.clock.interval=3"], "valid: _target_, hang_seconds, heartbeat_seconds"),
        (["strategy=ddp", "strategy/wire=int8"], "strategy/wire=int8 chooses nothing: strategy=ddp has no wire"),
        (
            ["data.path=book.txt"],
            "unknown key 'data.path' (value 'book.txt'); data=idx and data=pairs and data=table and",
        ),
        (["model.adapter.width=3"], "model.adapter is null here; model/adapter can be: none, ticks"),
        (["strategy=tick"], "strategy=tick is unknown; did you mean 'ticks'? valid: accumulate, adacomm, ddp,"),
        (["model/norm=layernorm"], "model/norm=layernorm is unknown; did you mean 'layer_norm'? valid: layer_norm, no"),
        (["debug=fats"], "debug=fats is unknown; did you mean 'fast'? valid: fast"),
        (["experiment=qux"], "experiment=qux is unknown; valid: "),
        (["data=null"], "data=null is unknown; valid: bbc, bible, cmudict, digits, idx, mnist, pairs, table, text"),
        (["model/norm=null"], "model/norm=null is unknown; valid: layer_norm, none, rms_norm"),
        (["strategy=base"], "strategy has no _target_: choose one of its files, strategy=NAME"),
        (["~model"], "~model: a run needs one: model=encoder, "),
        (["model=ln,rms"], "model=ln,rms: several values are several runs: add --multirun"),
        (["seed"], "cannot read 'seed': write KEY=VALUE"),
        (["name=[1"], "cannot read 'name=[1': write KEY=VALUE"),
        (["=3"], "cannot read '=3': write KEY=VALUE"),
        (["seed=null"], "seed=None must be a whole number from 0 to 4294967295"),
        (["seed=-1"], "seed=-1 must be a whole number"),
        (["seed=abc"], "seed=abc must be a whole number"),
        (["sample_bytes=0"], "unknown key 'sample_bytes' (value 0): it is task.sample_bytes now"),
        (["task.sample_bytes=some"], "task.sample_bytes=some must be a whole number"),
        (["trainer.devices=null"], "trainer.devices=None must be a whole number, a list of GPUs, or auto"),
        (["trainer.devices=true"], "trainer.devices=True must be a whole number, a list of GPUs, or auto"),
        (["strategy=qsr", "strategy.clock=8"], "strategy.clock=8: choose a file with strategy/clock=NAME (adaptive, "),
        (["+strategy.sync=outer"], "strategy.sync=outer: choose a file with strategy/sync=NAME (accumulate, "),
        (["test=perhaps"], "test=perhaps must be true or false"),
        (["name=a/b"], "name=a/b must be a part of a directory's name"),
        (["name="], "name= must be a part of a directory's name"),
        (["+callbacks.stop.patience=3"], "callbacks.stop has no _target_, so it would do nothing; give the class"),
        (["+logger.mine.project=a"], "logger.mine has no _target_, so it would do nothing"),
        (["+logger.extra=1"], "logger.extra=1 must be a class to build, with its _target_, or null"),
        (["callbacks.checkpoint=off"], "callbacks.checkpoint=off must be a class to build"),
        (["model.dropout=nan"], "model.dropout=nan must be a number"),
        (["optimizer.betas=[0.9,nan]"], "optimizer.betas[1]=nan must be a number"),
        (["trainer.num_nodes=-inf"], "trainer.num_nodes=-inf must be a whole number of at least 1"),
        (["run_dir={a:1}"], "run_dir={'a': 1} must be the path of a directory"),
        (
            ["data.eval_batch_size=99999999999999999999999"],
            "data.eval_batch_size=99999999999999999999999 is beyond 64 bits",
        ),
        (["~trainer.devices"], "trainer.devices is missing: give it a value instead"),
        (["~seed"], "seed is missing"),
        (["~trainer.max_steps"], "trainer.max_steps is missing: give it a value instead of leaving it out"),
        (["run_dir="], "run_dir= must be the path of a directory, or null"),
        (["resume="], "resume= must be the directory of a run, auto or null"),
        (["trainer.devices=x"], "trainer.devices=x must be a whole number, a list of GPUs, or auto"),
        (["strategy.sync=outer"], "strategy.sync=outer: choose a file with strategy/sync=NAME (accumulate,"),
        (["strategy.clock=8"], "; one of its values: strategy.clock.interval=8"),
        (["debug=fast", "~data"], "~data: a run needs one: data=bbc, data=bible, data=cmudict, data=digits, "),
        (["+callbacks.stop._targt_=a.B"], "did you mean '_target_' instead of '_targt_'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line_is_named_with_what_is_valid(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        checked(*overrides)
    assert message in messages(error)


def test_a_typo_at_the_top_level_of_train_yaml_is_found(configs: Path) -> None:
    file = configs / "train.yaml"
    file.write_text(file.read_text().replace("test: true", "tset: true"))
    with pytest.raises(ConfigError, match=r"unknown key 'tset'; did you mean 'test'"):
        composed(configs=configs)


@pytest.mark.parametrize(
    ("file", "right", "wrong", "message"),
    [
        ("data/base.yaml", "block_size: 64", "blok_size: 64", r"data\.blok_size=64: .*did you mean 'block_size'\?"),
        ("model/norm/layer_norm.yaml", "eps:", "epsilon:", r"model\.norm\.epsilon=.*did you mean 'eps'\? valid: bias"),
        (
            "trainer/default.yaml",
            "max_steps:",
            "max_step:",
            r"trainer\.max_steps is missing: .*'trainer\.max_step' meant",
        ),
        ("callbacks/default.yaml", "save_top_k", "save_top", r"callbacks\.checkpoint\.save_top=2: .*did you mean"),
        ("strategy/base.yaml", "hang_seconds", "hang_secs", r"strategy\.hang_secs=300: .*did you mean 'hang_seconds'"),
        ("strategy/clock/every_steps.yaml", "interval:", "intervall:", r"strategy\.clock\.intervall=8: .*'interval'\?"),
        ("model/norm/layer_norm.yaml", "LayerNorm", "LayerNrom", r"model\.norm\._target_=.*LayerNrom: .*no attribute"),
        ("model/norm/layer_norm.yaml", "ticks.models", "tikcs.models", r"model\.norm\._target_=.*No module named"),
        ("model/norm/layer_norm.yaml", "ticks.models.LayerNorm", "LayerNorm", r"model\.norm\._target_=LayerNorm: "),
        ("model/norm/layer_norm.yaml", "models.LayerNorm", "models", r"model\.norm\._target_=ticks\.models: a module"),
    ],
)
def test_a_typo_inside_a_groups_file_is_found(file: str, right: str, wrong: str, message: str, configs: Path) -> None:
    content = (configs / file).read_text()
    assert right in content
    (configs / file).write_text(content.replace(right, wrong))
    with pytest.raises(ConfigError, match=message) as error:
        checked(configs=configs)
    messages(error)


@pytest.mark.parametrize("group", ["experiment", "debug"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seeed: 3", "unknown key 'seeed'; did you mean 'seed'? valid: "),
        ("data: {blok_size: 3}", "unknown key 'data.blok_size'; did you mean 'block_size'? valid: "),
        ("trainer: {max_stepss: 3}", "Trainer takes no 'max_stepss'; did you mean 'max_steps'? valid: "),
        ("callbacks: {beep: {_target_: lightning.pytorch.callbacks.Timer, houers: 3}}", "takes no 'houers'; "),
        ("callbacks: {beep: {durations: 3}}", "callbacks.beep has no _target_, so it would do nothing"),
        ("model: {norm: {epz: 1.0e-3}}", "unknown key 'model.norm.epz'; did you mean 'eps'? valid: "),
        ("strategy: {clock: {intervall: 3}}", "unknown key 'strategy.clock.intervall'; did you mean 'interval'?"),
    ],
)
def test_a_typo_inside_an_experiment_or_debug_file_is_found(
    group: str, content: str, message: str, configs: Path
) -> None:
    (configs / group / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    with pytest.raises(ConfigError) as error:
        checked(f"{group}=mine", configs=configs)
    assert message in messages(error)


def test_what_files_say_now_counts_and_not_what_they_said_before(configs: Path) -> None:
    (configs / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel: {depth: 3}\n")
    with pytest.raises(ConfigError, match=r"unknown key 'model\.depth'"):
        composed("experiment=mine", configs=configs)
    file = configs / "model" / "ln.yaml"
    file.write_text(f"{file.read_text()}\ndepth: 2\n")
    (configs / "model" / ".#ln.yaml").symlink_to("nobody@nowhere.1")  # an editor's
    assert composed("experiment=mine", configs=configs).model.depth == 3


def test_what_a_debug_file_says_of_other_data_is_left_out_unless_it_was_typed() -> None:
    config = composed("experiment=digits_vit", "debug=fast")
    assert "block_size" not in config.data
    with pytest.raises(ConfigError, match=r"unknown key 'data\.block_size'"):
        composed("experiment=digits_vit", "debug=fast", "data.block_size=9")


@pytest.mark.parametrize("group", ["experiment", "debug"])
def test_an_experiment_may_add_trainer_arguments_callbacks_and_loggers(group: str, configs: Path) -> None:
    added = """
trainer: {deterministic: true, profiler: simple}
callbacks: {lr: {_target_: lightning.pytorch.callbacks.LearningRateMonitor, logging_interval: step}}
logger: {mine: {_target_: lightning.pytorch.loggers.CSVLogger, save_dir: somewhere}}
"""
    (configs / group / "mine.yaml").write_text(f"# @package _global_{added}")
    config = checked(f"{group}=mine", configs=configs)
    assert config.trainer.deterministic is True
    assert config.callbacks.lr.logging_interval == "step"
    assert config.callbacks.checkpoint.save_top_k == 2
    assert config.logger.mine.save_dir == "somewhere"


def test_an_experiment_is_held_against_the_groups_it_chooses_itself(configs: Path) -> None:
    right = "# @package _global_\ndefaults:\n  - override /model: ln_ticks\nmodel: {adapter: {width: 4}}\n"
    (configs / "experiment" / "right.yaml").write_text(right)
    (configs / "experiment" / "wrong.yaml").write_text(right.replace("width", "widht"))
    assert composed("experiment=right", configs=configs).model.adapter.width == 4
    with pytest.raises(ConfigError, match=r"unknown key 'model\.adapter\.widht'; did you mean 'width'?"):
        composed("experiment=wrong", configs=configs)


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_a_callback_or_logger_without_target_is_an_error_and_not_dropped(group: str, configs: Path) -> None:
    package = "" if group == "callbacks" else f"# @package {group}\n"
    (configs / group / "mine.yaml").write_text(f"{package}early:\n  _targt_: some.Class\n  patience: 3\n")
    with pytest.raises(ConfigError, match=rf"{group}\.early has no _target_.* did you mean '_target_' instead of") as e:
        composed(f"{group}=mine", configs=configs)
    messages(e)


# ---- mistakes in values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+trainer.profilr=simple",
            "trainer.profilr=simple: lightning.pytorch.Trainer takes no 'profilr'; did you mean",
        ),
        ("+model.norm.gain=1", "model.norm.gain=1: ticks.models.LayerNorm takes no 'gain'; valid: bias, d_model, eps"),
        ("+strategy.hearbeat_seconds=1", "did you mean 'heartbeat_seconds'?"),
        ("optimizer.lr=fast", "optimizer.lr=fast must be a number"),
        ("model.d_model=2.5", "model.d_model=2.5 must be a whole number"),
        ("model.bias=2", "model.bias=2 must be true or false"),
        ("trainer.max_steps=many", "trainer.max_steps=many must be a whole number"),
        ("strategy.clock=often", "strategy.clock=often: choose a file with strategy/clock=NAME (adaptive,"),
        ("model.norm=layer_norm", "model.norm=layer_norm: choose a file with model/norm=NAME (layer_norm,"),
        ("strategy.clock.interval=1.5", "strategy.clock.interval=1.5 must be a whole number"),
        ("model.norm._partial_=null", "model.norm._partial_=None must be true or false"),
        (
            "~strategy.optimizer_state._target_",
            "strategy.optimizer_state={} must be ticks.strategy.optimizer_state.Opt",
        ),
        ("~model.norm._target_", "must be collections.abc.Callable"),
    ],
)
def test_an_argument_that_its_target_does_not_take_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        checked(override)
    assert message in messages(error)


@pytest.mark.parametrize(
    ("overrides", "group", "message"),
    [
        (["model.n_heads=3"], "model", "model.n_heads=3 must divide d_model=32"),
        (["model.activation=swish"], "model", "model.activation='swish' is unknown; known: gelu, relu, silu"),
        (["model=ln_ticks", "model.adapter.width=0"], "model", "model: width=0 must be at least 1"),
        (["strategy.clock.interval=0"], "strategy", "strategy.clock.interval=0 must be at least 1"),
        (["strategy.hang_seconds=0"], "strategy", "strategy.hang_seconds=0 must be a finite number of seconds above 0"),
        (["data.block_size=0"], "data", "data.block_size=0 must be at least 1"),
        (["data=text"], "data", "data.path=None is not set"),
        (["data=text", "data.path=/nowhere"], "data", "data.path='/nowhere' matches no file"),
        (
            ["strategy/optimizer_state=periods", "strategy.optimizer_state.every.exp_avg=0"],
            "strategy",
            r"strategy\.optimizer_state\.every\.exp_avg=0 must be at least 1 rounds",
        ),
        (["trainer.precision=8"], "trainer", "trainer: Precision 8 is invalid"),
    ],
)
def test_a_value_that_is_refused_when_built_is_named(overrides: list[str], group: str, message: str) -> None:
    config = checked(*TINY, *overrides)
    more = {"vocab_size": 256, "block_size": 32} if group == "model" else {}
    with pytest.raises(ConfigError) as error:
        build(config[group], group, **more)
    assert re.match(message, str(error.value))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=-1"], "optimizer.lr=-1 must not be negative"),
        (["optimizer=sgd", "optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),  # torch's own words
        (["parameter_groups=[{match: norm, lr_factor: -1}]"], "parameter_groups[0].lr_factor=-1 must not be negative"),
        (["parameter_groups=[{match: nowhere}]"], "parameter_groups=['nowhere'] match no parameter"),
    ],
)
def test_what_an_optimizer_refuses_is_named_before_training(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parts(checked(*TINY, *overrides), {})
    assert str(error.value).startswith(message)


def test_a_logger_whose_package_is_missing_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available")

    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger.__init__", missing)
    config = composed("logger=tensorboard")
    with pytest.raises(ConfigError, match=r"logger\.tensorboard: Neither `tensorboard`"):
        build(config.logger.tensorboard, "logger.tensorboard")


def test_an_interpolation_that_leads_nowhere_is_one_message() -> None:
    with pytest.raises(ConfigError, match="nothing") as error:
        plain(composed("trainer.devices=${nothing}"))
    messages(error)


# ---- several runs -------------------------------------------------------------------------------------------------


def sweeps_seeds(configs: Path, values: str, key: str = "seed") -> Path:
    """configs/ in which train.yaml itself says what is swept."""
    (configs / "train.yaml").write_text(
        f"{(configs / 'train.yaml').read_text()}  sweeper:\n    params:\n      {key}: {values}\n"
    )
    return configs


def test_every_job_of_a_multirun_is_known_before_it_starts(configs: Path) -> None:
    jobs = check_sweep(["seed=1", "model=glob(rms*)", "hydra.sweep.subdir=x", "optimizer.lr=1e-3,2e-3"], CONFIGS)
    assert [(job[1], job[2]) for job in jobs] == [
        ("model=rms", "optimizer.lr=0.001"), ("model=rms", "optimizer.lr=0.002"),
        ("model=rms_ticks", "optimizer.lr=0.001"), ("model=rms_ticks", "optimizer.lr=0.002"),
    ]  # fmt: skip
    assert all(len(job) == 3 for job in jobs)
    assert check_sweep(["test=false"], sweeps_seeds(configs, "3,4")) == [
        ["seed=3", "test=False"],
        ["seed=4", "test=False"],
    ]


def test_a_mistake_in_what_train_yaml_sweeps_is_one_message(configs: Path) -> None:
    with pytest.raises(ConfigError, match="seed=x must be a whole number"):
        check_sweep([], sweeps_seeds(configs, "3,x"))
    with pytest.raises(ConfigError, match=r"cannot be set on the command line: one of .*params=\{seed:1\}") as error:
        check_sweep(["hydra.sweeper.params={seed:1}"], CONFIGS)
    messages(error)


@pytest.fixture
def other_sweeper(configs: Path) -> Path:
    """configs/ with a sweeper that is not Hydra's own."""
    folder = configs / "hydra" / "sweeper"
    folder.mkdir(parents=True)
    (folder / "other.yaml").write_text("_target_: hydra_plugins.other.Sweeper\nparams: null\nn_trials: 3\n")
    return configs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seeed=1"], "unknown key 'seeed'"),
        (["model=ln,rmss"], "model=rmss is unknown; did you mean 'rms'?"),
        (["seed=interval(-1,3)"], "seed=-1.0 must be a whole number"),
        (["seed=0,1,x", "optimizer.lr=interval(1e-4,1e-2)"], "seed=x must be a whole number"),
        (["hydra.sweeper.n_trails=4"], "hydra.sweeper.n_trails"),
        (["hydra.sweeper.params={seeed:'interval(1,2)'}"], "unknown key 'seeed'"),
        (["hydra/launcher=nothing"], "hydra/launcher=nothing is unknown; valid: basic, "),
    ],
)
def test_what_another_sweeper_can_choose_is_checked(overrides: list[str], message: str, other_sweeper: Path) -> None:
    with pytest.raises(ConfigError) as error:
        check_sweep(["hydra/sweeper=other", *overrides], other_sweeper)
    assert message in messages(error)


def test_another_sweeper_may_choose_from_intervals(other_sweeper: Path) -> None:
    overrides = [
        "hydra/sweeper=other",
        "optimizer.lr=interval(1e-4,1e-2)",
        "model=ln_ticks,rms_ticks",
        "model.adapter.width=8",
    ]
    assert check_sweep(overrides, other_sweeper) == []


# ---- digest -------------------------------------------------------------------------------------------------------


def test_the_same_experiment_has_the_same_digest() -> None:
    assert digest(composed("model=rms")) == digest(composed("model=rms"))
    assert len(digest(composed())) == 12


@pytest.mark.parametrize("override", ["gap=true", "task/regulariser=predictive_coding", "changes=prune"])
def test_keys_that_came_later_say_nothing_where_they_have_no_value(override: str) -> None:
    """A run of before they were there goes on."""
    config = composed()
    before = digest(config)
    for key in LATER:
        group, _, name = key.rpartition(".")
        (config[group] if group else config).pop(name, None)
    assert digest(config) == before
    assert digest(composed(override)) != before


@pytest.mark.parametrize("override", ["seed=1", "model=rms", "strategy.clock.interval=9"])
def test_another_experiment_has_another_digest(override: str) -> None:
    assert digest(composed(override)) != digest(composed())


@pytest.mark.parametrize("logger", ["csv", "wandb", "tensorboard"])
def test_where_a_run_lies_and_is_called_does_not_change_its_digest(logger: str) -> None:
    config = composed(f"logger={logger}")
    before = digest(config)
    config.name, config.run_dir, config.resume = "other", "elsewhere", "auto"
    assert digest(config) == before


def test_making_a_digest_leaves_the_configuration_as_it_was() -> None:
    config = composed("name=other")
    before = OmegaConf.to_yaml(config)
    digest(config)
    assert OmegaConf.to_yaml(config) == before


def test_an_unfinished_run_is_found_by_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = composed("seed=5")
    for name, status, seed in (("a", "stopped", 5), ("b", "finished", 5), ("c", "failed", 6)):
        directory = tmp_path / "logs" / "runs" / name
        directory.mkdir(parents=True)
        summary.write(directory, {"status": status, "config_digest": digest(composed(f"seed={seed}"))})
    (tmp_path / "logs" / "runs" / "damaged").mkdir()
    (tmp_path / "logs" / "runs" / "damaged" / "summary.json").write_text("{")
    assert find_unfinished(config) == Path("logs/runs/a")
    assert find_unfinished(composed("seed=7")) is None


# ---- train.py -----------------------------------------------------------------------------------------------------


def test_a_typo_is_told_before_torch_is_imported() -> None:
    code = """
import runpy, sys
sys.argv = ["train.py", "seeed=1"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit as exit_:
    print("exit", exit_.code, "torch" in sys.modules, "lightning" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "exit 2 False False\n"
    assert done.stderr.startswith("error: unknown key 'seeed' (value 1); did you mean 'seed'?")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+foo=1"], "unknown key 'foo'; valid: "),
        (["data=null"], "data=null is unknown"),
        (["seed=abc"], "seed=abc must be a whole number"),
        (["debug=fast", "optimizer.lr=abc"], "optimizer.lr=abc must be a number"),
        (["debug=fast", "trainer.accumulate_grad_batches=0"], "accumulate_grad_batches=0 must be at least 1"),
    ],
)
def test_train_py_ends_with_one_message_and_exit_code_2(overrides: list[str], message: str, tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *overrides)
    assert code == 2, output
    assert "Traceback" not in output
    assert message in output
    assert len([line for line in output.splitlines() if line.startswith("error: ")]) == 1


def test_train_py_names_its_choices_when_asked_for_help(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, "--help")
    assert code == 0
    assert "[layer_norm] none rms_norm" in output
    assert "ln_ticks" in output
    assert not {"base", "hydra/launcher", "sweep"} & set(output.split())
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--cfg job seeed=1", "unknown key 'seeed'"),
        ("--info seed=1", "invalid choice: 'seed=1'"),
        ("--resolve", "--resolve flag can only be used"),
        ("-m --cfg job", "--multirun, --cfg: only one of them"),
        ("--config-dir nowhere", "--config-dir nowhere: there is no such directory"),
        ("--shell-completion", "needs install=SHELL"),
        ("-m hydra/sweeper=nothing", "hydra/sweeper=nothing is unknown; valid: basic"),
        ("--nothing", "--nothing is no flag; --help tells them"),
        (
            "-m seed=1,2 hydra/launcher=joblibb",
            "hydra/launcher=joblibb is unknown; did you mean 'joblib'? valid: basic",
        ),
        ("-m seed=1 hydra/launcher=joblib hydra.launcher.n_job=2", "unknown key 'hydra.launcher.n_job' (value 2); did"),
        ("-m seed=1 hydra.launcher.n_jobs=2", "unknown key 'hydra.launcher.n_jobs' (value 2); valid: _target_"),
        ("-m seed=1 hydra/launcher=joblib hydra.launcher.n_jobs=two", "hydra.launcher.n_jobs=two cannot be: "),
        ("hydra.sweep.dirr=x", "unknown key 'hydra.sweep.dirr' (value 'x'); did you mean 'dir'?"),
        ("hydra/job_loging=none", "there is no group hydra/job_loging; did you mean 'hydra/job_logging'?"),
        ("--model=ln", "--model=ln is no flag; keys have no dashes: model=ln"),
    ],
)
def test_a_mistake_with_hydras_flags_is_one_message(arguments: str, message: str, tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *arguments.split())
    assert code == 2
    assert "Traceback" not in output
    assert message in output.splitlines()[-1]
    assert not (tmp_path / "logs").exists()


def test_flags_may_stand_anywhere(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, "seed=1", "--cfg", "job", "test=false", "--package", "seed")
    assert (code, output.splitlines()[-1]) == (0, "1")


def test_the_factors_of_a_low_rank_wire_travel_by_any_other() -> None:
    config = composed("strategy=powersgd", "strategy/wire@strategy.wire.wire=int4")
    assert config.strategy.wire.wire._target_ == "ticks.strategy.wire.Int4"


NAMES = (
    "a b.txt", "a,b.txt", "a(1).txt", "[a]/b.txt", "{a}.txt", "a=b.txt", "a'b.txt", 'a"b.txt', "a;b#c$d&e!f.txt",
    "春.txt", "a\\", '\\"', "2024", " lead and tail ", "a\udce9b",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_quoted_form_is_read_as_the_name_it_was_made_of(name: str) -> None:
    (argument,) = shlex.split(quoted(f"data.path={name}"))
    assert OverridesParser.create().parse_override(argument).value() == name


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("data.path=a(1).txt", """: 'data.path="a(1).txt"'"""),
        ("data.path=春.txt", """: 'data.path="春.txt"'"""),
        ("data.path=a,b.txt", """: 'data.path="a,b.txt"'"""),
        ("data.path=it's.txt", """: 'data.path="it'"'"'s.txt"'"""),
    ],
)
def test_a_name_that_needs_quotes_is_shown_with_them(argument: str, shown: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose_strictly(["data=text", argument], CONFIGS)
    assert str(error.value).endswith(shown)
    if "(" in argument:
        with pytest.raises(ConfigError, match="cannot read 'data"):
            check_sweep(["data=text", argument], REPOSITORY / "configs")


def test_a_number_for_a_text_is_shown_quoted() -> None:
    config = compose_strictly(["data=text", "data.path=2024"], CONFIGS)
    with pytest.raises(ConfigError, match=r"""must be a text or null; if it is a text, quote it: 'data.path="2024"'"""):
        check_targets(config)


def test_a_home_directory_can_be_written_without_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me (too)")
    assert with_home_directory("data.path=~/x.txt") == 'data.path="/home/me (too)/x.txt"'
    assert with_home_directory("resume=~/runs/a") == "resume=/home/me (too)/runs/a"
    for argument in ("~callbacks", "seed=0", "a=~", "-m"):
        assert with_home_directory(argument) == argument


@pytest.mark.parametrize("value", ["5", "null"])
def test_a_prompt_that_is_no_text_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.sample_prompt=.* must be a text"):
        check_targets(compose_strictly([f"task.sample_prompt={value}"], CONFIGS))


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_place_that_hydra_cannot_make_is_named_with_its_key(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"nothing can be written to {tmp_path}/file/x .* with {key}=DIRECTORY"):
        compose_strictly([f"{key}={tmp_path}/file/x"], CONFIGS, place=key)
    compose_strictly([f"{key}={tmp_path}/new/x"], CONFIGS, place=key)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
