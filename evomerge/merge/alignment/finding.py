"""Finds what of a model may change places: from its architecture's rules, or from the modules of a plain perceptron."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn

from evomerge.errors import PoolError
from evomerge.merge.alignment.families import EXPERTS, MODEL_TYPES, Family, Rule
from evomerge.merge.alignment.orders import Axis, Experts, Group, Heads, Part, Symmetries, Units
from evomerge.models.architecture.stacks import find_layers

_OF_HEADS = ("query", "key", "value", "context")
_BETWEEN = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Identity, nn.Dropout)
_NORMS = (nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm)


def family_of(config: Any) -> Family:
    """The rules of an architecture.

    Raises:
        PoolError: there are none.
    """
    kind = str(getattr(config, "model_type", None))
    if kind not in MODEL_TYPES:
        raise PoolError(
            f"alignment does not know which units of {kind!r} models may change places",
            f"one of {', '.join(sorted(MODEL_TYPES))}",
            "merge them as they are, by a path through their layers (search_space=data_flow) or not at all",
        )
    return MODEL_TYPES[kind]


def symmetries_of(module: nn.Module, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> Symmetries:
    """What of a transformers model may change places.

    Args:
        module: also on the meta device.
        config: its configuration.
        shapes: of its tensors by their names in the module; of tied ones, one is enough.

    Raises:
        PoolError: the architecture is not known, or has parameters, or shapes, that its rules do not.
    """
    family = family_of(config)
    prefix = f"{find_layers(module)[0]}."
    rules: dict[str, tuple[int | None, tuple[str, ...]]] = {}
    for name in shapes:
        number, _, inner = name.removeprefix(prefix).partition(".") if name.startswith(prefix) else ("", "", name)
        layer = int(number) if number else None
        axes = _axes_of(inner, family.outside if layer is None else family.layer)
        if axes is None or len(axes) != len(shapes[name]):
            raise PoolError(
                f"alignment does not know what the axes of {name!r} {shapes[name]} run over",
                f"a {config.model_type} model with the usual parameters",
                "",
            )
        rules[name] = layer, axes
    given = {word for _, axes in rules.values() for axis in axes for word in re.split(r"[+/]", axis) if "|" not in word}
    heads = _heads_of(config)
    groups: dict[Part, Group] = {}
    found: dict[str, tuple[Axis, ...]] = {}
    stacked = {name: _hidden_axis(axes) for name, (_, axes) in rules.items() if len(axes) == 3 and axes[0] == EXPERTS}
    for name in sorted(rules, key=lambda name: name not in stacked):  # how many experts there are is theirs to say
        layer, axes = rules[name]
        if name in stacked:
            found[name] = _of_experts(name, shapes[name], axes, layer, heads, groups)
            continue
        chosen = [next((w for w in axis.split("|") if w in given), "") if "|" in axis else axis for axis in axes]
        found[name] = tuple(
            _axis(name, size, axis, layer, heads, groups) for size, axis in zip(shapes[name], chosen, strict=True)
        )
    moving = {name: found[name] for name in shapes if any(axis.stretches for axis in found[name])}
    kinds = {part.kind for part in groups} | {"query_key", "value"} | ({"expert_units"} if stacked else set())
    return Symmetries(groups, moving, frozenset(kinds) - family.fixed, stacked)


def _axes_of(name: str, rules: Mapping[str, Rule]) -> tuple[str, ...] | None:
    """What the axes of a parameter run over; ``None`` where no rule says it."""
    module, _, parameter = name.rpartition(".")
    for pattern, rule in rules.items():
        if "" in rule and re.fullmatch(pattern, name):
            return rule[""]
        if parameter in rule and re.fullmatch(pattern, module):
            return rule[parameter]
    return None


def _heads_of(config: Any) -> Heads:
    """The heads of an attention layer, the same in all of them."""
    text = config.get_text_config()
    count = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or count
    if not (isinstance(count, int) and isinstance(groups, int)) or count % groups:
        raise PoolError(
            f"the model has {count} heads of queries and {groups} of keys and values",
            "the same number of queries for each head of keys and values, in all layers",
        )
    return Heads(groups, count // groups, getattr(text, "head_dim", None) or text.hidden_size // count)


def _axis(name: str, size: int, words: str, layer: int | None, heads: Heads, groups: dict[Part, Group]) -> Axis:
    """An axis of a tensor; `groups` receives the units on it."""
    if not words:
        return Axis(size)
    kinds = re.split(r"[+/]", words)
    parts = [Part(kind, layer if kind in (*_OF_HEADS, "mlp", EXPERTS) else None) for kind in kinds]
    own = {"query": heads.groups * heads.queries * heads.width, "key": heads.groups * heads.width}
    own |= {"context": own["query"], "value": own["key"]}
    if words in ("query", "key") and size == heads.width != own[words]:  # a norm within each head
        return Axis(size)
    sizes = [own.get(kind, size // len(kinds)) for kind in kinds]
    for part, length in zip(parts, sizes, strict=True):
        group: Group = heads if part.kind in _OF_HEADS else Units(length)
        if part.kind == EXPERTS and isinstance(own_experts := groups.get(part), Experts) and own_experts.count == size:
            group = own_experts
        if groups.setdefault(part.group, group) != group or sum(sizes) != size:
            raise PoolError(
                f"an axis of {name!r} has {size} entries, and {words} of other parameters do not fit on it",
                "parameters of one width",
            )
    if "/" in words:
        places = np.arange(size).reshape(heads.groups * heads.queries, len(kinds), heads.width)
        return Axis(size, tuple((part, places[:, at].ravel()) for at, part in enumerate(parts)))
    ends = np.cumsum([0, *sizes])
    stretches = tuple((part, np.arange(a, b)) for part, (a, b) in zip(parts, pairwise(ends.tolist()), strict=True))
    return Axis(size, stretches)


def _hidden_axis(words: tuple[str, ...]) -> int:
    """On which axis of a tensor of all experts the hidden units are."""
    return next(number for number, own in enumerate(words) if own.startswith("expert_units"))


def _of_experts(
    name: str,
    shape: tuple[int, ...],
    words: tuple[str, ...],
    layer: int | None,
    heads: Heads,
    groups: dict[Part, Group],
) -> tuple[Axis, ...]:
    """The axes of a tensor of all experts as a matrix, a row for each hidden unit of each (`Symmetries.matrix`)."""
    hidden = _hidden_axis(words)
    several = words[hidden].count("+") + 1
    part = Part("expert_units", layer)
    group = Experts(shape[0], shape[hidden] // several)
    if groups.setdefault(part.group, group) != group:
        raise PoolError(f"{name!r} has {group.count} experts of {group.width} units", "as many as the layer's others")
    places = np.arange(shape[0] * shape[hidden]).reshape(shape[0], several, group.width)
    rows = tuple((part, places[:, at].ravel()) for at in range(several))
    other = 3 - hidden
    return Axis(places.size, rows), _axis(name, shape[other], words[other], layer, heads, groups)


def perceptron_symmetries(module: nn.Sequential) -> Symmetries:
    """What of a plain perceptron may change places: the hidden units of each of its layers.

    Args:
        module: linear layers with norms, dropout and functions of single units between them, perhaps nested.

    Raises:
        PoolError: it holds another kind of module, or fewer than two linear layers.
    """
    chain = list(_leaves(module, ""))
    linear = [at for at, (_, own) in enumerate(chain) if isinstance(own, nn.Linear)]
    if len(linear) < 2:
        raise PoolError(f"the perceptron has {len(linear)} linear layers", "at least two: one has no hidden units")
    groups: dict[Part, Group] = {}
    axes: dict[str, tuple[Axis, ...]] = {}
    current = FIRST = Part("mlp", -1)  # the inputs, which stay
    for at, (name, own) in enumerate(chain):
        if isinstance(own, nn.Linear):
            taken, current = current, Part("mlp", at)
            given = _of_units(current, own.out_features, at != linear[-1], groups)
            axes[f"{name}.weight"] = (given, _of_units(taken, own.in_features, taken != FIRST, groups))
            axes[f"{name}.bias"] = (given,)
        elif isinstance(own, _NORMS) and current in groups:
            size = groups[current].size  # type: ignore[union-attr]  # a perceptron has no heads
            axes |= {f"{name}.{key}": (_of_units(current, size, True, groups),) for key in _OF_NORMS}
        elif not isinstance(own, _BETWEEN) and (isinstance(own, _NORMS) or current != FIRST):
            raise PoolError(
                f"the perceptron holds {type(own).__name__} at {name!r}",
                "linear layers, norms of hidden units, dropout and functions of single units",
            )
    there = module.state_dict()
    return Symmetries(groups, {k: v for k, v in axes.items() if k in there and any(own.stretches for own in v)})


_OF_NORMS = ("weight", "bias", "running_mean", "running_var")


def _of_units(part: Part, size: int, moves: bool, groups: dict[Part, Group]) -> Axis:
    if not moves:
        return Axis(size)
    groups.setdefault(part, Units(size))
    return Axis(size, ((part, np.arange(size)),))


def _leaves(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            yield from _leaves(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child
