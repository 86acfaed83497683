"""The types of the schema's keys, kept by us: OmegaConf takes ``'3'`` for a number, and 3 for true."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from evomerge.config.schema import Config
from evomerge.config.values import converted

SCHEMA = "evomerge_schema"
_NUMBERS = (int, float, bool)


@functools.cache
def composed_schema(kind: type = Config) -> type:
    """The schema that configurations are composed with: `kind`, whose numbers and switches may hold anything.

    What they do hold is for `check_types` to see, once everything that sets a key has set it.
    """
    hints = get_type_hints(kind)
    fields: list[Any] = []
    for field in dataclasses.fields(kind):
        hint, default = hints[field.name], field
        if dataclasses.is_dataclass(hint):
            hint = composed_schema(cast(type, hint))
            default = dataclasses.field(default_factory=hint)
        elif get_origin(hint) is dict and _has_numbers(hint):
            hint = dict[str, Any]
        elif _has_numbers(hint):
            hint = Any
        if default is field:
            given = field.default is not dataclasses.MISSING
            default = (
                dataclasses.field(default=field.default)
                if given
                else dataclasses.field(default_factory=cast(Any, field.default_factory))
            )
        fields.append((field.name, hint, default))
    return dataclasses.make_dataclass(kind.__name__, fields)


def register() -> None:
    """Make the schema known to Hydra under the name that `conf/config.yaml` lists."""
    ConfigStore.instance().store(name=SCHEMA, node=composed_schema())


def check_types(config: Any, kind: type = Config, key: str = "") -> None:
    """Refuse a number, or true or false, that is none.

    Args:
        config: composed with `composed_schema`, in whole.
        kind, key: of a part of it.

    Raises:
        ConfigError: names the key, and what it takes.
    """
    node = cast(DictConfig, config)
    for name, hint in get_type_hints(kind).items():
        if name not in node or OmegaConf.is_missing(node, name):
            continue
        place = f"{key}.{name}" if key else name
        if dataclasses.is_dataclass(hint):
            check_types(node[name], cast(type, hint), place)
        elif _has_numbers(hint):
            value = node[name]
            converted(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, hint, place)


def _has_numbers(hint: Any) -> bool:
    return hint in _NUMBERS or any(_has_numbers(inner) for inner in get_args(hint))
