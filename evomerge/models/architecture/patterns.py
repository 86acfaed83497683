"""Regular expressions of strangers, refused where matching them could take for ever."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

_LONGEST = 1000
_MOST_REPEATS = 4


def slow_pattern(pattern: str) -> str:
    """Why matching a regular expression may take long; empty when it does not.

    Python's engine backtracks: a repetition within a repetition takes exponential time, one after another a power of
    the text's length. Patterns for the names of modules need neither.

    Raises:
        re.error: it is none.
    """
    if len(pattern) > _LONGEST:
        return f"at most {_LONGEST} characters"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what later versions of Python may read otherwise
        re.compile(pattern)
    depths = list(_repeats(re._parser.parse(pattern), 0))  # type: ignore[attr-defined]  # there is no public parser
    if max(depths, default=0) > 1:
        return "no repetition within a repetition"
    return f"at most {_MOST_REPEATS} repetitions" if len(depths) > _MOST_REPEATS else ""


def _repeats(node: Any, depth: int) -> Iterator[int]:
    """For every ``*``, ``+`` and ``{n,m}`` how many it lies within, itself included; ``?`` is none."""
    for entry in node if isinstance(node, list) or hasattr(node, "data") else ():
        if isinstance(entry, tuple) and len(entry) == 2 and str(entry[0]) in _REPEATS and entry[1][1] != 1:
            yield depth + 1
            yield from _repeats(entry[1][2], depth + 1)
        else:
            yield from _inner(entry, depth)


def _inner(entry: Any, depth: int) -> Iterator[int]:
    """Those of everything that a part of a pattern holds."""
    if hasattr(entry, "data") or isinstance(entry, list):
        yield from _repeats(entry, depth)
    elif isinstance(entry, tuple):
        for value in entry:
            yield from _inner(value, depth)


_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
