"""What the configuration groups offer, read from their files."""

from __future__ import annotations

import yaml

from evomerge import conf_dir
from evomerge.construct import TARGET, locate
from evomerge.errors import EvomergeError


def asynchronous_strategies() -> list[str]:
    """The choices of the group ``strategy`` that never wait for evaluations, by name."""
    found = []
    for path in sorted((conf_dir() / "strategy").glob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        try:
            strategy = locate(str(node.get(TARGET)), path.stem) if isinstance(node, dict) else None
        except EvomergeError:  # a strategy whose library is not installed
            continue
        if getattr(strategy, "asynchronous", False) is True:
            found.append(path.stem)
    return found
