"""Keys that were added to a configuration with ``+`` and that nothing reads: a value that is ignored is a mistake."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from evomerge.config.schema import Config
from evomerge.config.trust import leaves
from evomerge.errors import ConfigError, nearest


def check_added(config: DictConfig) -> None:
    """Refuse keys that the schema does not have, unless another value refers to them: ``+x=2 strategy.sigma0=${x}``.

    Keys beside a ``_target_`` are for building it to see.

    Args:
        config: composed.

    Raises:
        ConfigError: names the key, and the nearest that there is.
    """
    texts = (value for _, value in leaves(OmegaConf.to_container(config)) if isinstance(value, str))
    read = {name for text in texts for name in re.findall(r"\$\{([^${}:]+)\}", text)}
    strangers = dict(_strangers(config, Config))
    for key, beside in strangers.items():
        node = OmegaConf.select(config, key)
        whole = [key, *(all_keys(node, f"{key}.") if isinstance(node, DictConfig) else ())]
        if read.intersection(whole):
            continue
        known = [name for name in all_keys(config) if not any(name == s or name.startswith(f"{s}.") for s in strangers)]
        alike = difflib.get_close_matches(whole[-1], known, n=1, cutoff=0.6)
        do = f"did you mean {alike[0]!r}?" if alike else nearest(key, beside)
        raise ConfigError(f"there is no key {whole[-1]!r}", do, "see `evomerge search --cfg job`")


def all_keys(node: Any, prefix: str = "") -> list[str]:
    """Every key of a node and of those below it, dotted, each before what is below it."""
    keys: list[str] = []
    for name in node:
        key = f"{prefix}{name}"
        keys.append(key)
        if isinstance(node, DictConfig) and OmegaConf.is_dict(node._get_node(name)):
            keys += all_keys(node[name], f"{key}.")
    return keys


def _strangers(node: DictConfig, kind: type, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Keys of a node that the dataclass of its place has not, and those that it has."""
    known = {field.name: field for field in fields(kind)}
    for name in map(str, node):
        if name not in known:
            yield f"{prefix}{name}", [f"{prefix}{own}" for own in known]
            continue
        inner = known[name].default_factory
        if is_dataclass(inner):
            yield from _strangers(node[name], cast(type, inner), f"{prefix}{name}.")
