"""Matching a checkpoint's tensor names with the names in the transformers module that loads it.

They differ when a checkpoint was saved from the bare base model (the prefix lacks), when transformers has
renamed a module since, where weights are tied, and where loading joins tensors (`conversion`). The rules are
transformers' own, read from the module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from evomerge.models.architecture.conversion import Join, Renames


@dataclass(frozen=True)
class NameMatch:
    """How the tensors of one checkpoint fill a module.

    Attributes:
        stored: name in the module -> name in the checkpoint, in the module's order. Of a group of tied
            parameters only the first appears, under whichever of their names the checkpoint has.
        joins: the checkpoint tensors that are converted on loading, by the first of the places that they fill.
        duplicates: further checkpoint names of a tied parameter -> the one in `stored`.
        ignored: checkpoint tensors that the class does not load and says so (old buffers).
        missing: module parameters for which the checkpoint has nothing.
        unexpected: checkpoint tensors for which the module has no place.
        unjoined: what keeps checkpoint tensors from being joined, a sentence each.
    """

    stored: Mapping[str, str]
    joins: Mapping[str, Join]
    duplicates: Mapping[str, str]
    ignored: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unjoined: tuple[str, ...]


def tied_names(module: nn.Module) -> dict[str, str]:
    """Names of parameters that share another's weights -> the first name of the group."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        original = first.setdefault(id(parameter), name)
        if original != name:
            tied[name] = original
    # Recorded by name as well, should the module not have tied them on the meta device.
    known = set(first.values())
    for target, source in getattr(module, "all_tied_weights_keys", {}).items():
        source = tied.get(source, source)
        if target in known and source in known and target not in tied and target != source:
            tied[target] = source
    return tied


def match_names(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> NameMatch:
    """Match checkpoint tensors with the parameters and persistent buffers of `module`.

    Args:
        module: a transformers module, on the meta device.
        shapes: the checkpoint's tensors by name.
    """
    from transformers.core_model_loading import dot_natural_key

    state = module.state_dict()
    tied = tied_names(module)
    renames = Renames(module)
    found: dict[str, list[str]] = {}
    own_place: dict[str, str] = {}
    parts: dict[str, list[tuple[str, str]]] = {}
    unexpected = []
    for name in sorted(shapes, key=dot_natural_key):  # the order in which transformers goes through them
        place, pattern = renames.place(name)
        if place not in state:
            unexpected.append(name)
        elif pattern is not None:
            parts.setdefault(place, []).append((pattern, name))
        else:
            own_place[name] = place
            found.setdefault(tied.get(place, place), []).append(name)
    joins, filled, unjoined = _joins(module, shapes, parts, renames)
    for place in filled:
        unexpected += found.pop(place, ())
    stored: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    for place in state:
        if place in found:
            # The name of the parameter itself before those that are tied to it.
            chosen = min(found[place], key=lambda name: (own_place[name] != place, name))
            stored[place] = chosen
            duplicates |= {name: chosen for name in found[place] if name != chosen}
    skip = _patterns(getattr(module, "_keys_to_ignore_on_load_missing", None))
    needed = [name for name, _ in module.named_parameters() if name not in tied and name not in filled]
    missing = [name for name in needed if name not in stored and not (skip and skip.search(name))]
    ignore = _patterns(_ignorable(module))
    return NameMatch(
        stored,
        joins,
        duplicates,
        tuple(name for name in unexpected if ignore and ignore.search(name)),
        tuple(missing),
        tuple(name for name in unexpected if not (ignore and ignore.search(name))),
        tuple(unjoined),
    )


def _joins(
    module: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    parts: Mapping[str, list[tuple[str, str]]],
    renames: Renames,
) -> tuple[dict[str, Join], set[str], list[str]]:
    """The joins of a checkpoint, the places that they fill, and what is wrong with them."""
    state = module.state_dict()
    joins, filled, problems = {}, set(), []
    for place, collected in parts.items():
        own = tuple(tuple(shapes[name]) for _, name in collected)
        join = joins[place] = Join((place,), tuple(collected), own, renames.by_pattern[collected[0][0]])
        filled.add(place)
        more = f" and {len(join.names) - 1} more" if len(join.names) > 1 else ""
        what = f"tensor {join.names[0]!r}{more} cannot be joined to {place!r}"
        try:
            made = join.join({name: torch.empty(shapes[name], device="meta") for name in join.names}, module)
        except Exception as error:  # converters raise whatever torch does
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            problems.append(f"{what} ({reason})")
            continue
        joins[place] = replace(join, places=(place, *(other for other in made if other != place)))
        filled |= made.keys()
        for target, tensor in made.items():
            wanted = state.get(target)
            if wanted is None or wanted.shape != tensor.shape:
                needed = "has no such tensor" if wanted is None else f"has {tuple(wanted.shape)}"
                problems.append(f"{what}: they make {tuple(tensor.shape)}, {type(module).__name__} {needed}")
    return joins, filled, problems


def _ignorable(module: nn.Module) -> list[str]:
    """Patterns of checkpoint tensors that the class drops silently, as `from_pretrained` does."""
    patterns = list(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ())
    buffers = [name for name, _ in module.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.append(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.append(r"(^|\.)position_ids$")
    return patterns


def _patterns(patterns: Iterable[str] | None) -> re.Pattern[str] | None:
    listed = list(patterns or ())
    return re.compile("|".join(f"({pattern})" for pattern in listed)) if listed else None
