"""Heads of their own: which tensors of a pool belong to a source's task, and where they are stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from evomerge.errors import PoolError, RecipeError, nearest
from evomerge.models.architecture.components import OuterComponents
from evomerge.models.architecture.layout import model_class, skeleton
from evomerge.models.architecture.names import NameMatch, match_names
from evomerge.models.architecture.stacks import find_stacks, layer_place, passed_by
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.recipes.heads import Heads
from evomerge.recipes.recipe import Recipe

AUTO = "auto"
"""Of `pool.heads`: found from shapes and names."""

Setting = str | Sequence[str] | None
"""`AUTO`, a pattern of tensor names or several, or ``None``: all tensors are merged."""


@dataclass(frozen=True)
class PoolHeads:
    """The heads of a pool's models.

    Attributes:
        heads: which tensors of which models.
        names: for each of the tensors its name in a checkpoint of the pool's layout.
        stored: for every model with a head: tensor -> the name in its own checkpoint.
        configs: of these models, the transformers configuration.
    """

    heads: Heads
    names: Mapping[str, str]
    stored: Mapping[str, Mapping[str, str]]
    configs: Mapping[str, Any]


def find_heads(
    setting: Setting,
    headed: Sequence[str],
    configs: Mapping[str, Any],
    checkpoints: Mapping[str, Checkpoint],
    trust_remote_code: bool = False,
) -> Heads | None:
    """Which tensors of a pool are heads of their own; ``None`` where all are merged.

    By default these are the tensors outside of what the architecture calls its base model, where sources have other
    labels, or the base has no head to take a difference from. Output embeddings of language models are never among them
    unless a pattern says so. What the base does not store behind its layers (a pooler) belongs to the heads too.

    Args:
        setting: `AUTO`, patterns or ``None``.
        headed: the models with a head, in order: the sources.
        configs: transformers configurations of all models.
        checkpoints: of all models.
        trust_remote_code: let models that bring their own code run it.

    Raises:
        PoolError: a pattern that matches nothing, layers, or nothing but what is there for all tasks.
    """
    first = configs[headed[0]]
    if setting is None or (setting == AUTO and not _differ(headed, configs)):
        return None
    module = skeleton(first, trust_remote_code)
    components = OuterComponents(module)
    outer = _outer_places(module, components)
    if setting == AUTO:
        found = {place for place in outer if components.is_task(place)}
        if not found:
            return None
    else:
        patterns = [setting] if isinstance(setting, str) else list(setting)
        found = set()
        for pattern in patterns:
            own = {place for place in module.state_dict() if fnmatchcase(place, pattern.strip())}
            if not own or not own <= set(outer):
                within = next(iter(sorted(own - set(outer))), None)
                raise PoolError(
                    f"pool.heads has {pattern!r}, which is the name of "
                    + ("no tensor" if within is None else f"a layer's tensor, {within}"),
                    f"tensors outside the layers: {nearest(pattern, outer)}",
                    "give a name or a pattern such as 'classifier*'",
                )
            found |= own
    for name in configs:
        if name not in headed:
            lacking = match_names(module, checkpoints[name].shapes).missing
            found |= {place for place in lacking if place in outer and outer[place] == "head"}
    return Heads(tuple(place for place in module.state_dict() if place in found), tuple(headed))


def _differ(headed: Sequence[str], configs: Mapping[str, Any]) -> bool:
    """Whether models have other labels, or another of their kind has no such head to take a difference from."""
    labels = {_labels(configs[name]) for name in headed}
    first = configs[headed[0]]
    return len(labels) > 1 or any(
        other.model_type == first.model_type
        and (model_class(other) is not model_class(first) or _count(other) != _count(first))
        for name, other in configs.items()
        if name not in headed
    )


def _count(config: Any) -> int:
    return int(getattr(config, "num_labels", 0) or 0)


def _labels(config: Any) -> frozenset[str]:
    return frozenset(map(str, (getattr(config, "id2label", None) or {}).values()))


def _outer_places(module: nn.Module, components: OuterComponents) -> dict[str, str]:
    """The tensors outside the layers, in order, with the component that each is part of."""
    stacks, passed = find_stacks(module), set[str]()
    found = dict[str, str]()
    for place in module.state_dict():
        inside = layer_place(place, stacks)
        if inside is not None:
            passed.add(inside[2])
        else:
            found[place] = components(place, passed_by(place, stacks, passed))
    return found


def stored_heads(
    heads: Heads,
    configs: Mapping[str, Any],
    matches: Mapping[str, NameMatch],
    checkpoints: Mapping[str, Checkpoint],
    names: NameMatch,
    trust_remote_code: bool,
    problems: list[PoolError],
) -> PoolHeads:
    """Where the heads are stored, once every model's checkpoint has been matched with its module.

    Args:
        heads: of the pool.
        configs, matches, checkpoints: by model.
        names: the match that gives the layout its names.
        trust_remote_code: let models that bring their own code run it.
        problems: heads that do not have the shapes that their configuration gives them are added to it.
    """
    stored: dict[str, dict[str, str]] = {}
    states: dict[int, Mapping[str, Any]] = {}
    for task in heads.tasks:
        config, match, checkpoint = configs[task], matches[task], checkpoints[task]
        count = _count(config)
        if count not in states:
            states[count] = skeleton(config, trust_remote_code).state_dict()
        stored[task] = {place: match.stored[place] for place in heads.tensors if place in match.stored}
        for place in heads.tensors:
            own = stored[task].get(place)
            if own is None:
                problems.append(
                    PoolError(f"model {task!r} stores {place!r} joined with others", "heads that are stored as such")
                )
                continue
            info, wanted = checkpoint.tensors[own], states[count].get(place)
            floats = wanted is None or wanted.is_floating_point()  # a count of batches, say, is carried as it is
            if wanted is None or info.shape != tuple(wanted.shape) or info.is_float != floats:
                kind = "floats" if floats else "integers"
                shape = "none" if wanted is None else f"{kind} of {tuple(wanted.shape)}"
                problems.append(
                    PoolError(
                        f"model {task!r}: tensor {own!r} is {info.dtype} of {info.shape}, config.json makes it {shape}",
                        "",
                        "configuration and weights must belong together",
                    )
                )
    own_names = {place: names.stored.get(place, place) for place in heads.tensors}
    return PoolHeads(heads, own_names, stored, {task: configs[task] for task in heads.tasks})


def without_head_problems(match: NameMatch, heads: Heads, prefix: str) -> NameMatch:
    """The match of a model without a head, whose own tensors outside of the base model are of another task.

    Args:
        match: with the module that has the head.
        heads: which tensors that is.
        prefix: of the base model in the module.
    """
    return replace(
        match,
        missing=tuple(place for place in match.missing if place not in heads.tensors),
        unexpected=tuple(name for name in match.unexpected if name.startswith(f"{prefix}.")),
    )


def config_giver(heads: Heads | None, base: str | None, sources: Sequence[str]) -> str:
    """The model that gives a pool's configuration (see `PoolInfo.config_from`)."""
    if heads is not None:
        return next(name for name in sources if name in heads.tasks)
    return base or sources[0]


def headed_of(tasks: Collection[str] | None, sources: Sequence[str]) -> tuple[str, ...]:
    """The models with a head: of a recipe's `tasks` those that are sources, else all sources."""
    return tuple(sources) if tasks is None else tuple(name for name in sources if name in tasks)


def head_of(recipe: Recipe, known: PoolHeads | None) -> str | None:
    """The model whose head of its own is on a recipe's result; ``None`` where all is merged.

    Raises:
        RecipeError: the recipe and its pool do not carry the same tensors, or the head is not in the pool.
    """
    wanted = recipe.heads
    if wanted is None and known is None:
        return None
    if wanted is None or known is None or set(wanted.tensors) != set(known.heads.tensors):
        raise RecipeError(
            f"the recipe carries the heads {'none' if wanted is None else ', '.join(wanted.tensors)}",
            f"those of the pool: {'none' if known is None else ', '.join(known.heads.tensors)}",
            "open it with pool.heads as the recipe has them",
        )
    if recipe.config_from not in known.stored:
        raise RecipeError(f"no head of {recipe.config_from!r} is in the pool", ", ".join(known.stored))
    return recipe.config_from
