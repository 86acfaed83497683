"""The configuration of a run that begins with another one's evaluations: that run's, with what is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from omegaconf import DictConfig, OmegaConf

from evomerge.config.compose import compose_config
from evomerge.config.overrides import set_value
from evomerge.config.schema import Config
from evomerge.config.trust import FLAG, check_trust
from evomerge.errors import ConfigError
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger
from evomerge.run.ledger_file import LedgerError
from evomerge.search.racing.settings import AUTO
from evomerge.session.resume import read_config
from evomerge.utils.installation import conf_dir

KEY = "from_run"


def source_of(arguments: Sequence[str]) -> str | None:
    """The run that ``from_run=RUN`` names among the arguments."""
    for argument in arguments:
        key, assigned, value = argument.lstrip("+").partition("=")
        value = value.strip("'\"")
        if key == KEY and assigned and value not in ("null", ""):
            return value
    return None


def forked_config(source: str, arguments: Sequence[str]) -> Config:
    """The configuration of run `source` with the overrides among the arguments, in a run folder of its own.

    Raises:
        ConfigError: an option that only composing from scratch has, or a key that is none.
    """
    folder = RunFolder.open(source)
    config = read_config(folder)
    _leave_open(config, folder)
    words = [word for word in arguments if word != FLAG]
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise ConfigError(f"{KEY} was given with {flags[0]}", f"KEY=VALUE, GROUP=OPTION and {FLAG}")
    if not any(word.startswith("run_dir=") for word in words):
        fresh = compose_config([word for word in words if word.startswith("name=")])
        config.name, config.run_dir = fresh.name, fresh.run_dir
    for word in words:
        key, assigned, value = word.lstrip("+").partition("=")
        if not assigned:
            raise ConfigError(f"cannot read the override {word!r}", "key=value")
        if key == "experiment":
            raise ConfigError(f"{word} was given with {KEY}", f"the configuration is that of {source}")
        group, _, place = key.partition("@")
        if (conf_dir() / group).is_dir() and (conf_dir() / group / f"{value}.yaml").is_file():
            node = OmegaConf.select(cast(DictConfig, compose_config([word])), place or group)
            config[place or group] = OmegaConf.to_container(node, resolve=True)
        else:
            set_value(config, key, value)
    config.from_run = source
    if FLAG not in arguments:
        check_trust(OmegaConf.to_container(config, resolve=True), words, f"the configuration of {source}")
    return cast(Config, config)


def _leave_open(config: DictConfig, folder: RunFolder) -> None:
    """Leave open what was left open in the run: with what is changed, something else may follow."""
    try:
        keys = next((event.get("left_open") for event in read_ledger(folder) if event["event"] == "started"), None)
    except LedgerError:  # said when its evaluations are looked up
        return
    for key in keys if isinstance(keys, list) else ():
        owner, _, name = str(key).rpartition(".")
        node = OmegaConf.select(config, owner) if name in ("first", "most", "after", "prior") else None
        if isinstance(node, DictConfig) and name in node:
            node[name] = AUTO
