"""Overrides: values of the configuration as they are written on the command line."""

from __future__ import annotations

from dataclasses import is_dataclass

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evomerge.config.added_keys import check_added
from evomerge.config.key_types import check_types
from evomerge.errors import ConfigError, nearest
from evomerge.utils.yaml_numbers import misread


def set_value(config: DictConfig, key: str, value: str) -> str:
    """Set one key of a configuration to a value as it is written on the command line; what has changed, if anything.

    Raises:
        ConfigError: there is no such key, or it cannot have this value.
    """
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if isinstance(node, DictConfig) and is_dataclass(OmegaConf.get_type(node)) and name not in node:
        raise ConfigError(f"there is no key {key!r}", nearest(name, map(str, node)))
    read = misread(value.strip())
    if read:
        raise ConfigError(f"{key}={value} would be read as {read}", "a decimal number, or text in quotes")
    try:
        before = OmegaConf.select(config, key)
        OmegaConf.update(config, key, OmegaConf.from_dotlist([f"value={value}"]).value, force_add=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{key} cannot be {value!r}", " ".join(str(error).split())[:200]) from error
    check_added(config)
    check_types(config)
    after = OmegaConf.select(config, key)
    return "" if after == before else f"{key} was {before}, is {after}"
