"""Numbers that YAML 1.1 reads as others than they look: in base 60 with colons, in base 8 after a zero."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from evomerge.utils.yaml_nodes import nodes

_COLONS = re.compile(r"[-+]?[1-9][\d_]*(:[0-5]?\d)+|[-+]?\d[\d_]*(:[0-5]?\d)+\.[\d_]*")
_ZERO = re.compile(r"[-+]?0[0-7_]+")


def misread(text: str) -> str:
    """What such a number is read as, in words; empty for all else.

    >>> misread("1:30"), misread("010"), misread("1_000"), misread("10"), misread("007")
    ('90, in base 60', '8, in base 8', '', '', '')
    """
    if _COLONS.fullmatch(text):
        return f"{yaml.safe_load(text)}, in base 60"
    if _ZERO.fullmatch(text):
        value = yaml.safe_load(text)
        return "" if value == int(text, 10) else f"{value}, in base 8"
    return ""


def misread_values(node: Any) -> Iterator[tuple[str, str, int]]:
    """The plain scalars below a node that `misread` knows: text, what it is read as, and line from 1."""
    for each in nodes(node, keys=True):
        if isinstance(each, yaml.ScalarNode) and not each.style and misread(each.value):
            yield each.value, misread(each.value), each.start_mark.line + 1
