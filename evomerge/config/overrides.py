"""Overrides: values of the configuration as they are written on the command line."""

from __future__ import annotations

from dataclasses import is_dataclass

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from evomerge.config.added_keys import check_added
from evomerge.config.argument_mappings import ARGUMENTS, beside_a_text
from evomerge.config.key_types import check_types
from evomerge.errors import ConfigError, nearest
from evomerge.utils.yaml_numbers import misread

_WHOLE = ("evaluator.engine_args",)
"""Mappings that are given in whole: a wrong name must not stay beside what is given anew."""


def take_away(config: DictConfig, override: str) -> str:
    """Take away an entry of a mapping that is given in whole, and say what has changed.

    Args:
        config: is changed.
        override: ``~key``.

    Raises:
        ConfigError: there is no such entry, or nothing is taken away there.
    """
    key = override.removeprefix("~").partition("=")[0]
    parent, _, name = key.rpartition(".")
    if parent not in _WHOLE:
        allowed = f"key=value; entries of {', '.join(_WHOLE)} alone are taken away"
        raise ConfigError(f"{override} takes something away from a run that goes on", allowed)
    node = OmegaConf.select(config, parent)
    if not isinstance(node, DictConfig) or name not in node:
        names = map(str, node) if isinstance(node, DictConfig) else ()
        raise ConfigError(f"there is no key {key!r}", nearest(name, names))
    with open_dict(node):
        return f"{key} was {node.pop(name)}, is left out"


def set_value(config: DictConfig, key: str, value: str) -> str:
    """Set one key of a configuration to a value as it is written on the command line; what has changed, if anything.

    Raises:
        ConfigError: there is no such key, or it cannot have this value.
    """
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if isinstance(node, DictConfig) and is_dataclass(OmegaConf.get_type(node)) and name not in node:
        raise ConfigError(f"there is no key {key!r}", nearest(name, map(str, node)))
    for place in ARGUMENTS:
        if key.startswith(f"{place}.") and isinstance(text := OmegaConf.select(config, place), str):
            raise beside_a_text(key, place, text)
    read = misread(value.strip())
    if read:
        raise ConfigError(f"{key}={value} would be read as {read}", "a decimal number, or text in quotes")
    try:
        before = OmegaConf.select(config, key)
        given = OmegaConf.from_dotlist([f"value={value}"]).value
        OmegaConf.update(config, key, given, merge=key not in _WHOLE, force_add=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{key} cannot be {value!r}", " ".join(str(error).split())[:200]) from error
    check_added(config)
    check_types(config)
    after = OmegaConf.select(config, key)
    return "" if after == before else f"{key} was {before}, is {after}"
