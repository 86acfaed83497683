"""Errors of a part's own, with the keys as the user has written them: a class does not know where its node stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from evomerge.errors import EvomergeError

_NODES = ("fitness", "cheap", "validation", "held_out", "search_space", "strategy", "evaluator", "calibration")
_ENDINGS = r"(?:jsonl?|txt|ya?ml|safetensors)\b"  # a file may be called as a key is: texts.jsonl


@contextmanager
def placed(key: str, names: Iterable[str]) -> Iterator[None]:
    """Name keys in full in errors that are raised inside: ``held_out.tasks is empty``.

    Args:
        key: where the node of the part stands: ``held_out``, ``phases.path.strategy``.
        names: of the arguments that the part takes from it.
    """
    try:
        yield
    except EvomergeError as error:
        error.reword(lambda part: _in_full(part, key, names))
        raise


def _in_full(text: str, key: str, names: Iterable[str]) -> str:
    named = (part for part in reversed(key.split(".")) if part in _NODES)
    own = "fitness" if key in ("cheap", "validation", "held_out") else next(named, "")
    if own and own != key and not text.startswith(f"{key}."):  # said of the group's first place
        text = re.sub(rf"(?<![\w.@]){own}\.(?=\w)", f"{key}.", text)
    alternatives = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    if not alternatives:
        return text
    text = re.sub(rf"^({alternatives})(?=: )", lambda found: f"{key}.{found[1]}", text)  # a file, and where in it
    said = rf" is (?!a\b|the\b)|=|\.(?!{_ENDINGS})\w|\[\d| has no key| has '| names '| says nothing of | are both"
    known = rf"(?<![\w.\-/'\"{{=,])({alternatives})(?={said})"
    return re.sub(known, lambda found: f"{key}.{found[1]}", text)
