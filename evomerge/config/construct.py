"""Constructs what a configuration node describes, checking every key against the signature of its target."""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from evomerge.config.composing_words import left_open, not_set
from evomerge.config.kinds import check_call, check_kind, signature_of
from evomerge.config.placing import placed
from evomerge.config.values import converted
from evomerge.errors import ConfigError, nearest
from evomerge.protocols import Fitness, StrategyBuilder

TARGET = "_target_"
_READ_BEFORE = {"search_space": ("bounds",), "strategy": ("prior",)}
"""Keys of every part of a group, which are taken out of its node before the part is made."""


def build(node: Any, key: str, *args: Any, **injected: Any) -> Any:
    """Construct what a configuration node describes.

    Args:
        node: a mapping with `_target_`, a dotted name, and keyword arguments; nested nodes are built first.
        key: where the node stands in the configuration, for messages.
        args, injected: arguments that come from the program, not from the user.

    Raises:
        ConfigError: no such target, one of another kind than the key's, an argument it does not have or lacks, or a
            value of the wrong type.
    """
    values = to_builtin(node)
    target, path = _target(values, key)
    signature = signature_of(target, key, path)
    hints = _hints(target)
    given = {n: _nested(v, hints.get(n), f"{key}.{n}") for n, v in values.items() if n != TARGET}
    arguments = {**injected, **check_arguments(target, given, key, len(args), set(injected))}
    check_call(signature, args, arguments, key, path)
    own = [name for name in signature.parameters if name not in injected][len(args) :]  # `pool` has keys of its own
    with placed(key, own):
        made = target(*args, **arguments)
    check_kind(made, key, path)
    return made


def check_node(node: Any, key: str, positional: int, injected: set[str] | None = None) -> None:
    """Check what a node describes as far as its target's signature says, without constructing it; nested nodes too.

    Args:
        node, key: as for `build`.
        positional: how many arguments come from the program by position.
        injected: names of others that do.

    Raises:
        ConfigError: as for `build`.
    """
    values = to_builtin(node)
    target, path = _target(values, key)
    signature_of(target, key, path)
    hints = _hints(target)
    given: dict[str, Any] = {}
    for name, value in values.items():
        hint, place = hints.get(name), f"{key}.{name}"
        nested = _nested_nodes(value, hint, place)
        for inner, where in nested:
            check_node(inner, where, *((2, {"seed"}) if hint in (StrategyBuilder, list[StrategyBuilder]) else (0,)))
        if name != TARGET:
            given[name] = object() if nested else value
    check_arguments(target, given, key, positional, injected)


def arguments_of(part: object) -> list[str]:
    """Names of the arguments that a part's class takes."""
    return list(inspect.signature(type(part)).parameters)


def _nested_nodes(value: Any, hint: Any, key: str) -> list[tuple[Any, str]]:
    """The nodes that an argument holds, with their keys."""
    if hint == list[StrategyBuilder] and isinstance(value, list):
        for place, entry in enumerate(value):
            if not (isinstance(entry, Mapping) and TARGET in entry):
                allowed = f"a mapping with {TARGET}, as the file of a strategy in conf/strategy has it"
                raise ConfigError(f"{key}.{place} is {entry!r}", allowed)
        return [(entry, f"{key}.{place}") for place, entry in enumerate(value) if isinstance(entry, Mapping)]
    return [(value, key)] if isinstance(value, Mapping) and TARGET in value else []


def _target(values: Any, key: str) -> tuple[Callable[..., Any], str]:
    """What a node's `_target_` names, and the name."""
    if not isinstance(values, Mapping) or TARGET not in values:
        raise ConfigError(f"{key} is {values}", f"a group choice or a mapping with {TARGET}", f"see conf/{key}")
    path = str(values[TARGET])
    target = locate(path, f"{key}.{TARGET}")
    check_kind(target, key, path)
    return target, path


def to_builtin(node: Any) -> Any:
    """A configuration node as plain values, interpolations resolved; `ConfigError` for one to a key that is not set."""
    try:
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except InterpolationToMissingValueError as error:
        raise not_set(error) from error


def check_arguments(
    target: Callable[..., Any],
    given: Mapping[str, Any],
    key: str,
    positional: int = 0,
    injected: set[str] | None = None,
) -> dict[str, Any]:
    """Check a user's arguments against the signature and annotations of `target`; returns them converted."""
    parameters = list(inspect.signature(target).parameters.values())[positional:]
    allowed = {p.name: p for p in parameters if p.name not in (injected or set())}
    hints = _hints(target)
    converted: dict[str, Any] = {}
    for name, value in given.items():
        if name not in allowed:
            of_all = _READ_BEFORE.get(key.rpartition(".")[2], ())
            raise ConfigError(f"{key} has no key {name!r}", *instead_of(target, name, key, (*allowed, *of_all)))
        if value == "???":
            raise left_open(f"{key}.{name}")
        converted[name] = _convert(value, hints.get(name, Any), f"{key}.{name}")
    for name, parameter in allowed.items():
        if name not in given and parameter.default is parameter.empty:
            raise ConfigError(f"{key}.{name} is missing", f"{key} needs it", f"set it with {key}.{name}=...")
    return converted


def instead_of(target: object, name: str, key: str, allowed: Iterable[str]) -> tuple[str, ...]:
    """What is said of a key that `target` does not have: the keys that there are, or what to do instead.

    A class whose users come from another tool has an attribute ``foreign_keys``: that tool's keys which have no
    meaning here -> why, and what to do instead.

    Args:
        target: a class or function.
        name: the key that was given.
        key: where the node stands in the configuration.
        allowed: the keys that there are.
    """
    foreign: Mapping[str, tuple[str, str]] = getattr(target, "foreign_keys", {})
    if name in foreign:
        reason, instead = foreign[name]
        return reason, instead.replace("fitness.", f"{key}.")
    return (nearest(name, allowed),)


def _convert(value: Any, annotation: Any, key: str) -> Any:
    if annotation in (list[StrategyBuilder], dict[str, Fitness]):
        return value
    if not isinstance(value, str | int | float | list | dict | None):
        return value  # an object that a nested node described
    return converted(value, annotation, key)


def _nested(value: Any, annotation: Any, key: str) -> Any:
    """What a nested node describes, or a builder of it where the target is to build it itself."""
    if annotation == list[StrategyBuilder] and isinstance(value, list):
        _nested_nodes(value, annotation, key)
        return [_nested(entry, StrategyBuilder, f"{key}.{place}") for place, entry in enumerate(value)]
    if annotation == dict[str, Fitness]:
        return _fitnesses(value, key)
    if not (isinstance(value, Mapping) and TARGET in value):
        return value
    return functools.partial(build, value, key) if annotation is StrategyBuilder else build(value, key)


def _fitnesses(value: Any, key: str) -> dict[str, Any]:
    """The fitnesses that a mapping of names to nodes describes."""
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(
            f"{key} is {value!r}", "a fitness for each name", f"choose them with +fitness@{key}.NAME=lm_eval, say"
        )
    for name, entry in value.items():
        if not (isinstance(entry, Mapping) and TARGET in entry):
            do = f"choose one with +fitness@{key}.{name}=lm_eval, say"
            raise ConfigError(f"{key}.{name} is {entry!r}", f"a mapping with {TARGET}", do)
    return {str(name): build(entry, f"{key}.{name}") for name, entry in value.items()}


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)


def locate(path: str, key: str) -> Callable[..., Any]:
    """The class or function of a dotted name; `ConfigError` naming `key` when there is none."""
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name) if module_name else None
    except ImportError as error:
        raise ConfigError(f"{key} is {path!r}", f"it cannot be imported: {error}") from error
    target = getattr(module, name, None) if module else None
    if not callable(target):
        known = (
            [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module_name] if module else []
        )
        raise ConfigError(f"{key} is {path!r}", f"{module_name or path} has no such class: {nearest(name, known)}")
    return cast(Callable[..., Any], target)
