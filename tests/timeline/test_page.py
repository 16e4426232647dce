"""docs/timeline.md, done: its action of one class and one YAML works as it stands there, what it names is there."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer

from tests.conftest import REPOSITORY
from tests.timeline.test_timeline import Watch, train
from ticks.config import compose_strictly
from ticks.timeline import settings

PAGE = (REPOSITORY / "docs" / "timeline.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", PAGE, flags=re.DOTALL))


def test_the_action_of_the_page_is_one_class_and_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = dict(vars(settings))
    exec(FILES["src/ticks/timeline/settings.py"], names)
    monkeypatch.setattr(settings, "GradientClip", names["GradientClip"], raising=False)
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (tmp_path / "configs/timeline/tight_start.yaml").write_text(FILES["configs/timeline/tight_start.yaml"])
    config = compose_strictly(["timeline=[tight_start,lr_steps]", "trainer.max_steps=20"], tmp_path / "configs")
    assert config.timeline.tight_start.ramp == "10%"
    from ticks.assemble import planned

    line = "tight_start: from step 1, over 2 steps: GradientClip(start=0.1, end=1.0)"
    assert planned(config)[0] == line

    class Clips(Watch):
        def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
            clips.append(trainer.gradient_clip_val)

    clips: list[Any] = []
    said = yaml.safe_load(FILES["configs/timeline/tight_start.yaml"])["tight_start"]
    do = names["GradientClip"](start=said["do"]["start"], end=said["do"]["end"])
    train({"tight_start": said | {"ramp": 4, "do": do}}, tmp_path, callbacks=[Clips()])
    assert clips == pytest.approx([0.325, 0.55, 0.775, *[1.0] * 5])


def test_every_action_and_preset_is_on_the_page() -> None:
    import ticks.timeline as room

    kinds = (room.Setting, room.Event)
    actions = {n for n in room.__all__ if isinstance(at := getattr(room, n), type) and issubclass(at, kinds)}
    told = set(re.findall(r"`([A-Z]\w+)\(", PAGE))
    assert actions - {"Setting", "Event"} <= told
    presets = {file.stem for file in (REPOSITORY / "configs/timeline").glob("*.yaml")} - {"none"}
    assert presets <= set(re.findall(r"`([a-z_]+)`", PAGE))


def test_the_phases_of_the_page_are_those_of_the_experiment() -> None:
    file = "configs/experiment/pretrain_then_finetune.yaml"
    assert yaml.safe_load(FILES[file])["phases"] == yaml.safe_load((REPOSITORY / file).read_text())["phases"]
