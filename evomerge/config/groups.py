"""What the configuration groups offer, read from their files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import yaml

from evomerge.config.construct import TARGET, locate
from evomerge.errors import ConfigError, EvomergeError, nearest
from evomerge.utils.installation import conf_dir


def can_be_asynchronous(strategy: Any) -> bool:
    """Whether a class of strategies never waits for evaluations, or need not: it takes ``asynchronous=True``."""
    return getattr(strategy, "asynchronous", False) is True or takes_asynchronous(strategy)


def takes_asynchronous(strategy: Any) -> bool:
    """Whether a class of strategies is told by its argument ``asynchronous`` not to wait."""
    return "asynchronous" in inspect.signature(strategy).parameters


def asynchronous_strategies() -> list[str]:
    """The choices of the group ``strategy`` that never wait for evaluations, or need not, by name."""
    found = []
    for path in sorted((conf_dir() / "strategy").glob("*.yaml")):
        try:
            strategy = locate(str(strategy_node(conf_dir(), path.stem)[TARGET]), path.stem)
        except EvomergeError:  # a strategy whose library is not installed
            continue
        if can_be_asynchronous(strategy):
            found.append(path.stem)
    return found


def strategy_node(folder: Path, name: str) -> dict[str, Any]:
    """The node of one choice of the group ``strategy`` below a folder of groups.

    Raises:
        ConfigError: there is none of this name, or it is not a node with a target.
    """
    files = {path.stem: path for path in (folder / "strategy").glob("*.yaml")}
    if name not in files:
        raise ConfigError(f"strategy={name}: there is no such option", nearest(name, sorted(files)))
    node = yaml.safe_load(files[name].read_text())
    if not isinstance(node, dict) or TARGET not in node:
        raise ConfigError(f"strategy={name} has no {TARGET}", "a mapping with a dotted name")
    return node
