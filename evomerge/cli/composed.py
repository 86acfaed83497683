"""A verb as a Hydra application: overrides, sweeps, ``--cfg`` and ``--help``."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from evomerge.cli.misplaced import misplaced
from evomerge.cli.scarce_memory import lack_of_memory
from evomerge.config.compose import COMPOSING, check_composed, explain, not_composed, opened
from evomerge.config.file_checks import check_files
from evomerge.config.key_types import register
from evomerge.config.schema import Config
from evomerge.config.trust import FLAG, check_trust
from evomerge.errors import ConfigError, EvomergeError, nearest
from evomerge.utils.installation import conf_dir

_HEADERS = {
    "validate": "evomerge validate checks an experiment without loading a model, and says what it would take.\n"
    "It takes the words of evomerge search: compose an experiment from the groups below and override any key.\n",
    "calibrate": "evomerge calibrate makes the statistics of data that methods such as fisher and regmean read.\n"
    "It takes the words of evomerge search: pool, calibration and statistics say which; the others do not matter.\n",
    "learn": "evomerge learn learns coefficients, a mask or factors of columns by gradients on calibration items.\n"
    "It takes the words of evomerge search: pool, search_space, calibration and learning say what and on which.\n",
}
"""What ``--help`` says first, for verbs that take a search's words."""
_HYDRA_FLAGS = {
    "--multirun",
    "--help",
    "--hydra-help",
    "--config-name",
    "--config-path",
    "--config-dir",
    "--cfg",
    "--info",
}

_WITH_VALUE = {
    **dict.fromkeys(("--config-dir", "-cd", "--config-path", "-cp"), "a folder: --config-dir my"),
    **dict.fromkeys(("--config-name", "-cn"), "the name of a file without .yaml"),
    **dict.fromkeys(("--cfg", "-c"), "job, hydra or all: --cfg job"),
}
"""What follows flags of Hydra, whose parser would print its usage."""


def hydra_app(verb: str, arguments: Sequence[str], task: Callable[[Config], None]) -> int:
    """Run `task` as a Hydra application: overrides, ``-m`` sweeps, ``--cfg``, ``--help``.

    Code that is not evomerge's is only run when the arguments name it, or are with ``--trust``.

    Raises:
        ConfigError: the configuration cannot be composed.
    """
    register()
    trust, arguments = FLAG in arguments, [a for a in arguments if a != FLAG]
    unknown = [a for a in arguments if a.startswith("--") and not _known_flag(a)]
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}", nearest(unknown[0], [*_HYDRA_FLAGS, FLAG]))
    if verb in _HEADERS and (sweep := [a for a in arguments if a in ("-m", "--multirun")]):
        raise ConfigError(
            f"`evomerge {verb}` was given {sweep[0]}",
            "it looks at one experiment: without it, each key with one value",
            "`evomerge search -m` checks each job of a sweep before it begins",
        )
    if arguments and arguments[-1] in _WITH_VALUE:
        raise ConfigError(f"{arguments[-1]} is given without a value", _WITH_VALUE[arguments[-1]])
    for flag, value in itertools.pairwise(arguments):
        if flag in ("--cfg", "-c") and value not in ("job", "hydra", "all"):
            raise ConfigError(f"{flag} is {value!r}", nearest(value, ["job", "hydra", "all"]))
    for folder in _config_folders(arguments):
        check_files(Path(folder), arguments)
    if verb in _HEADERS and "--help" in arguments:
        arguments = [*arguments, f"hydra.help.app_name=evomerge {verb}", f"hydra.help.header='{_HEADERS[verb]}'"]
    before, sys.argv = sys.argv, [f"evomerge {verb}", *opened(arguments)]
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting

    failed: list[EvomergeError] = []
    unexpected: list[Exception] = []

    def job(config: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # jobs of a sweep must not share a run folder
            config.run_dir = os.path.join(config.run_dir, str(HydraConfig.get().job.num))
        try:
            check_composed(config, arguments)
            if not trust:
                check_trust(OmegaConf.to_container(config, resolve=True), arguments, "the configuration")
            task(cast(Config, config))
        except EvomergeError as error:  # raised after Hydra, which would print lines of its own about it
            failed.append(error)
        except Exception as error:
            if known := lack_of_memory(error) or misplaced(error):
                failed.append(known)
                return
            unexpected.append(error)
            raise

    try:
        hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()
    except COMPOSING as error:
        raise explain(error, arguments) from error
    except Exception as error:
        if error in unexpected:
            raise
        raise not_composed(error) from error
    finally:
        sys.argv = before
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
    if failed:
        raise failed[0]
    return 0


def _known_flag(argument: str) -> bool:
    name = argument.split("=")[0].replace("_", "-")
    # --experimental-rerun is none of them: it reads a pickle, which may run anything.
    return name in {*_HYDRA_FLAGS, "--resolve", "--package", "--run", "--version"}


def _config_folders(arguments: Sequence[str]) -> list[str]:
    """Folders with files of the user's that the configuration is composed of."""
    found = [
        a.partition("=")[2] for a in arguments if a.replace("_", "-").startswith(("--config-dir=", "--config-path="))
    ]
    for place, argument in enumerate(arguments[:-1]):
        if argument.replace("_", "-") in ("--config-dir", "--config-path", "-cd", "-cp"):
            found.append(arguments[place + 1])
    return found
