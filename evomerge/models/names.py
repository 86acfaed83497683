"""Matching a checkpoint's tensor names with the names in the transformers module that loads it.

They differ when a checkpoint was saved from the bare base model (the prefix lacks), when transformers has
renamed a module since, and where weights are tied. The rules are transformers' own, read from the module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class NameMatch:
    """How the tensors of one checkpoint fill a module.

    Attributes:
        stored: name in the module -> name in the checkpoint, in the module's order. Of a group of tied
            parameters only the first appears, under whichever of their names the checkpoint has.
        duplicates: further checkpoint names of a tied parameter -> the one in `stored`.
        ignored: checkpoint tensors that the class does not load and says so (old buffers).
        missing: module parameters for which the checkpoint has nothing.
        unexpected: checkpoint tensors for which the module has no place.
        fused: checkpoint tensors that transformers joins or splits on loading.
    """

    stored: Mapping[str, str]
    duplicates: Mapping[str, str]
    ignored: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    fused: tuple[str, ...]


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
        if target in known and source in known and target not in tied:
            tied[target] = source
    return tied


def match_names(module: nn.Module, names: Iterable[str]) -> NameMatch:
    """Match checkpoint tensor `names` with the parameters and persistent buffers of `module`."""
    names = sorted(names)
    places = dict.fromkeys(module.state_dict())
    tied = tied_names(module)
    rename = _renamer(module)
    found: dict[str, list[str]] = {}
    fused, unexpected = [], []
    for name in names:
        place, is_fused = rename(name)
        if is_fused:
            fused.append(name)
        elif place in places:
            found.setdefault(tied.get(place, place), []).append(name)
        else:
            unexpected.append(name)
    stored: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    for place in places:
        if place in found:
            # The name of the parameter itself before those that are tied to it.
            chosen = min(found[place], key=lambda name: rename(name)[0] != place)
            stored[place] = chosen
            duplicates |= {name: chosen for name in found[place] if name != chosen}
    skip = _patterns(getattr(module, "_keys_to_ignore_on_load_missing", None))
    needed = [name for name, _ in module.named_parameters() if name not in tied]
    missing = [name for name in needed if name not in stored and not (skip and skip.search(name))]
    ignore = _patterns(_ignorable(module))
    return NameMatch(
        stored,
        duplicates,
        tuple(name for name in unexpected if ignore and ignore.search(name)),
        () if fused else tuple(missing),
        tuple(name for name in unexpected if not (ignore and ignore.search(name))),
        tuple(fused),
    )


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


def _renamer(module: nn.Module) -> Any:
    """A function from checkpoint name to (module name, whether loading joins or splits tensors)."""
    places = module.state_dict()
    prefix = getattr(module, "base_model_prefix", "") or ""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # an older or newer transformers: names as they are, with or without the prefix
        return lambda name: (_with_prefix(name, prefix, places), False)
    transforms = get_model_conversion_mapping(module)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]

    def rename(name: str) -> tuple[str, bool]:
        renamed, converter = rename_source_key(name, renamings, converters, prefix, places)
        if renamed not in places and name in places:
            return name, False
        return renamed, converter is not None

    return rename


def _with_prefix(name: str, prefix: str, places: Mapping[str, Any]) -> str:
    if name in places or not prefix:
        return name
    bare = name.removeprefix(f"{prefix}.")
    return bare if bare in places else f"{prefix}.{name}"
