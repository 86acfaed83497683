"""What identifies a document, and the draw of some of many."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from evomerge.errors import ConfigError

T = TypeVar("T")


class Document(NamedTuple):
    """What identifies a document that is asked, or learnt from.

    Attributes:
        asked: hash of the question, the choices and the target, as the task writes them.
        content: hash of all that the document holds, whatever a task makes of it.
    """

    asked: str
    content: str


def content_hash(content: Any) -> str:
    """The hash of plain values, whatever the order of their keys."""
    text = json.dumps(content, sort_keys=True, default=_bytes)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _bytes(value: Any) -> str:
    """What JSON has no word for: arrays and images by all of their content, of which ``str`` shows a part or none."""
    content = value.tobytes() if callable(getattr(value, "tobytes", None)) else str(value).encode()
    kind = type(value).__qualname__, getattr(value, "shape", None), getattr(value, "size", None)
    return f"{kind} {hashlib.sha256(content).hexdigest()}"


def asked_hash(question: str, choices: Sequence[Any], target: str) -> str:
    """The hash of what is asked: spaces around it, and the order of choices, do not matter."""
    return content_hash([question.strip(), sorted(str(choice).strip() for choice in choices), target.strip()])


def check_draw(items: int, seed: int) -> None:
    """`ConfigError` for a number or a seed that no draw has."""
    if items < 1 or seed < 0:
        raise ConfigError(f"items is {items} and seed is {seed}", "at least 1 item, a seed of 0 or more")


def drawn(found: Sequence[T], items: int, seed: int) -> list[T]:
    """So many of the items, drawn without putting back and kept in order; all where there are no more."""
    if len(found) <= items:
        return list(found)
    chosen = np.random.default_rng(seed).choice(len(found), items, replace=False)
    return [found[i] for i in sorted(int(i) for i in chosen)]


def by_model(given: Any, model: str, key: str) -> list[str]:
    """What a key says for one model: a list for all, or a mapping of models to lists.

    Raises:
        ConfigError: it says nothing of the model.
    """
    own = given.get(model) if hasattr(given, "get") else given
    found = [own] if isinstance(own, str) else list(own or [])
    if not found:
        raise ConfigError(f"{key} says nothing of model {model!r}", "a list for all models, or one for each")
    return [str(entry) for entry in found]


def of_all(given: Any) -> list[str]:
    """Everything that a key says of any model, each once."""
    own = [entry for each in given.values() for entry in ([each] if isinstance(each, str) else each)]
    return list(dict.fromkeys(str(entry) for entry in own))
