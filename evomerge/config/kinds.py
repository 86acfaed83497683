"""Whether what a ``_target_`` names is of the kind that stands in that place of a configuration."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError

_FITNESS = ("a fitness", ("prepare", "run", "fingerprint"))
_WITHOUT_MODELS = (("score", "fingerprint"), ("score_genome", "fingerprint"))
_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fitness": _FITNESS,
    "cheap": _FITNESS,
    "validation": _FITNESS,
    "held_out": _FITNESS,
    "search_space": ("a search space", ("spec", "decode")),
    "strategy": ("a strategy", ("ask", "tell")),
    "calibration": ("calibration items", ("check", "items", "documents")),
    "evaluator": ("an evaluator", ("submit", "collect")),
    "pruner": ("a pruner", ("prune",)),
}
"""By the last part of a node's key: what must stand there, and what such a part has."""


def check_kind(found: Any, key: str, named: str) -> None:
    """Refuse a class, or an object that a function made, that lacks what its place asks for.

    Args:
        found: it. Of a class, what its instances are given when they are made is not known, so methods count alone.
        key: of its node.
        named: its dotted name.

    Raises:
        ConfigError: names the key and what is lacking.
    """
    what, has = _KINDS.get(key.rpartition(".")[2], ("", ()))
    if inspect.isroutine(found):
        _refuse_function(found, key, named)
        return  # what it makes is looked at
    missing = _missing(found, has)
    if has is _FITNESS[1] and not all(_missing(found, own) for own in _WITHOUT_MODELS):
        return  # of genomes that are the models
    if hasattr(found if inspect.isclass(found) else type(found), "__getattr__"):
        return  # one that hands on to another
    if inspect.isclass(found):
        missing = [name for name in missing if name != "spec"]
    if missing:
        raise ConfigError(
            f"{key}._target_ is {named!r}",
            f"{what} has {', '.join(has)}; this has no {', '.join(missing)}",
            f"choose one with {key}=NAME, or see docs/extending.md for what one of your own needs",
        )


def _refuse_function(found: Any, key: str, named: str) -> None:
    """Refuse functions of Python's own, which make no part: calling one to see would do what it does."""
    what, has = _KINDS.get(key.rpartition(".")[2], ("a part of evomerge", ()))
    module = str(getattr(found, "__module__", None) or "")
    own = module.partition(".")[0] not in (*sys.stdlib_module_names, "")
    if own and not inspect.isbuiltin(found):
        return
    raise ConfigError(
        f"{key}._target_ is {named!r}, a function of Python's own",
        f"a class: {what} has {', '.join(has)}" if has else "a class of this project, or your own",
        f"choose one with {key}=NAME, or see docs/extending.md for what one of your own needs",
    )


def _missing(found: Any, has: Sequence[str]) -> list[str]:
    return [name for name in has if inspect.getattr_static(found, name, None) is None]


def check_call(
    signature: inspect.Signature, args: Sequence[Any], named: Mapping[str, Any], key: str, path: str
) -> None:
    """Refuse a target, of this signature, that cannot be given what the program gives it."""
    try:
        signature.bind(*args, **named)
    except TypeError as error:
        what, has = _KINDS.get(key.rpartition(".")[2], ("a part", ()))
        is_one = f"{what} has {', '.join(has)}, and is made so" if has else "a class that is"
        raise ConfigError(
            f"{key}._target_ is {path!r}, which cannot be made like {what}: {error}", f"{is_one}: see docs/extending.md"
        ) from error


def signature_of(target: Callable[..., Any], key: str, path: str) -> inspect.Signature:
    """The signature of a target; `ConfigError` where it has none that can be seen."""
    try:
        return inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}._target_ is {path!r}", f"a class whose arguments can be seen: {error}") from error
