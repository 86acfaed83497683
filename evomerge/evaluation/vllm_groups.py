"""Tensors that an engine holds as one, which must be given to it together."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from evomerge.errors import RecipeError


def require_whole_groups(names: Collection[str], groups: Mapping[str, Sequence[str]], known: Collection[str]) -> None:
    """Refuse tensors without others that the engine fuses with them: it would leave the others' place uninitialised.

    Args:
        names: tensors that are given, by their names in the checkpoint.
        groups: modules that the engine holds as one, such as ``qkv_proj`` -> ``q_proj``, ``k_proj``, ``v_proj``.
        known: all tensors of the model.

    Raises:
        RecipeError: a group of which some tensors are given and others are not; names the first that is missing.
    """
    given, every = set(names), set(known)
    for fused, members in groups.items():
        if len(members) < 2:
            continue
        pattern = re.compile(rf"(.*\.)({'|'.join(map(re.escape, members))})(\..*)")
        for name in given:
            found = pattern.fullmatch(name)
            if found is None:
                continue
            others = (f"{found[1]}{member}{found[3]}" for member in members)
            missing = [other for other in others if other in every and other not in given]
            if missing:
                raise RecipeError(
                    f"{name!r} is given to the engine without {missing[0]!r}",
                    f"the engine holds {', '.join(members)} as one tensor, {fused}",
                    "give all of them",
                )
