"""How entries of a configuration are taken away, for who tried in a way that does not: only what works is named."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from evomerge.config.construct import TARGET
from evomerge.config.keywords import written
from evomerge.config.schema import Config
from evomerge.errors import ConfigError

_TAKE_NULL = ("search_space.parameters", "strategy.prior", "held_out")
_TAKE_NULL_BELOW = ("fitness.gen_kwargs", "fitness.chat_template_args", "held_out.gen_kwargs")
_MODELS = "pool.models"


def taking_away(key: str, config: DictConfig | None = None) -> tuple[str, str]:
    """What takes entries of the mapping at `key` away: what is allowed, and what to do.

    Args:
        key: of a mapping.
        config: the composed configuration that has it; ``None`` where there is none.
    """
    node: Any = OmegaConf.select(config, key) if config is not None else None
    if isinstance(node, DictConfig) and (TARGET in node or is_dataclass(OmegaConf.get_type(node))):
        whole = f"{key}=null leaves all of it out" if key == "held_out" else f"leave {key}={{}} out"
        return f"single keys are set, and the others stay: {_example(key, node)}", whole
    needed = {OmegaConf.select(config, "pool.base")} if config is not None and key == _MODELS else set()
    names = [str(name) for name in node if name not in needed] if isinstance(node, DictConfig) else []
    listed = ", ".join(f"~{key}.{name}" for name in names)
    whole = f"{key}=null leaves all of it out" if key in _TAKE_NULL + _TAKE_NULL_BELOW else ""
    whole = "pool=custom begins with no models" if key == _MODELS else whole
    return f"what takes one away: {listed or f'~{key}.NAME'}", whole


def another_value(key: str) -> str:
    """What a key takes that is always there."""
    return f"another value, or {key}=null" if _takes_null(key) else f"another value: {key}=VALUE"


def _example(key: str, node: DictConfig) -> str:
    """An override that sets one key of a node to what it is."""
    for name in map(str, node):
        value = None if OmegaConf.is_missing(node, name) else node[name]
        if isinstance(value, bool | int | float | str) and not name.startswith("_"):
            try:
                return f"{key}.{name}={written(value, key)}"
            except ConfigError:
                continue
    return f"{key}.NAME=VALUE"


def _takes_null(key: str) -> bool:
    """Whether the schema lets a key be null."""
    kind: Any = Config
    for name in key.split("."):
        hints: Mapping[str, Any] = typing.get_type_hints(kind) if is_dataclass(kind) else {}
        if name not in hints:
            return False
        kind = hints[name]
    return typing.get_origin(kind) in (types.UnionType, typing.Union) and type(None) in typing.get_args(kind)
