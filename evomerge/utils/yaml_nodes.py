"""The nodes of a composed YAML document."""

from __future__ import annotations

from collections.abc import Iterator

import yaml


def nodes(root: yaml.Node | None, *, keys: bool = False) -> Iterator[yaml.Node]:
    """A node and all below it in the order of the document, each once: an alias may lead back.

    Args:
        root: none for an empty document.
        keys: give the keys of mappings too.
    """
    todo, seen = [root], set[int]()
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, yaml.SequenceNode):
            todo += reversed(each.value)
        elif isinstance(each, yaml.MappingNode):
            todo += [part for key, value in reversed(each.value) for part in ((value, key) if keys else (value,))]
