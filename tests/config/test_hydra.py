"""A single run is composed once: what it is given then is what hydra.main would give it, or hydra.main does."""

import logging
from collections.abc import Iterator
from typing import Any

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tests.conftest import REPOSITORY
from ticks.config import compose_strictly
from ticks.config.hydra import as_hydra_would

CONFIGS = REPOSITORY / "configs"
TYPED = ["model=rms", "debug=fast", "trainer.devices=2", "name=${model.d_model}-wide"]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    HydraConfig.instance().cfg = None
    root.handlers[:], root.level = before, level


def known() -> dict[str, Any]:
    """What Hydra knows of a run, but for what is said of how it was started."""
    about: Any = OmegaConf.to_container(HydraConfig.get(), resolve=False)
    about["job"].pop("name")  # the script's
    about["overrides"].pop("hydra")  # hydra.mode=RUN
    return about


def test_a_run_is_given_what_hydra_would_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = as_hydra_would(compose_strictly(TYPED, CONFIGS, keep=True))
    assert own is not None
    assert own.name == "32-wide"

    def told(config: DictConfig) -> tuple[Any, ...]:
        root = logging.getLogger()
        log = root.level, [type(handler) for handler in root.handlers]
        return known(), OmegaConf.to_container(config, resolve=True), OmegaConf.is_struct(config), log

    mine = told(own)
    logging.getLogger().handlers.clear()
    seen: list[tuple[Any, ...]] = []

    def job(config: DictConfig) -> None:
        seen.append(told(config))

    monkeypatch.setattr("sys.argv", ["train.py", *TYPED])
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")(job)()
    assert mine == seen[0]


@pytest.mark.parametrize(
    "override",
    [
        "hydra.job.chdir=true",
        "hydra.run.dir=somewhere",
        "hydra.output_subdir=.hydra",
        "hydra.verbose=true",
        "+hydra.job.env_set.ANSWER=42",
        "hydra.mode=RUN",
        "hydra/job_logging=default",
        "~hydra/job_logging",
        "+hydra.callbacks.it={_target_:hydra.experimental.callbacks.LogJobReturnCallback}",
    ],
)
def test_what_hydra_would_do_beside_is_left_to_it(override: str) -> None:
    assert as_hydra_would(compose_strictly([override], CONFIGS, keep=True)) is None
