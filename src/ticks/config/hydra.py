"""What is asked of Hydra beyond its public functions: a test says so if a new Hydra has it no more."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from ticks.config.messages import ConfigError


def jobs_of_a_grid(parsed: list[Override]) -> list[list[str]]:
    """The overrides of each job, as Hydra's own sweeper cuts them."""
    try:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    except ImportError as error:
        raise ConfigError(f"this Hydra is not known here: {error}: pip install 'hydra-core==1.3.*'") from None
    try:
        return [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
    except HydraException as error:
        raise ConfigError(f"cannot read the command line: {str(error).splitlines()[0]}") from None


def flags() -> ArgumentParser:
    """What hydra.main reads of a command line."""
    return get_args_parser()


def config_folders() -> list[Path]:
    """Where the files of the configuration lie; nowhere, if Hydra has not been started."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    return [Path(source.path) for source in sources if source.schema == "file"]


def in_hydra(config_dir: Path) -> initialize_config_dir:
    """A block in which `compose` finds the files of `config_dir`."""
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(config_dir.resolve()), job_name="train", version_base="1.3")


def as_hydra_would(config: DictConfig) -> DictConfig | None:
    """What hydra.main would give a single run that was composed with what is said of Hydra itself, and what Hydra then
    knows of it; None if Hydra would do more than that: it composes all of it twice again."""
    said: Any = config.hydra
    job, choices = said.job, said.runtime.choices
    if said.callbacks or job.chdir or job.env_set or said.verbose or said.output_subdir is not None:
        return None
    if Path(said.run.dir) != Path() or said.mode or choices.get("hydra/job_logging") != "none":
        return None
    configure_log(said.hydra_logging, said.verbose)
    own = config.copy()
    with read_write(own), open_dict(own):
        del own["hydra"]
    with read_write(config), open_dict(config):
        said.runtime.output_dir, said.mode = str(Path.cwd()), RunMode.RUN
    HydraConfig.instance().set_config(config)
    return own
