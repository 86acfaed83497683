"""Embeddings and heads that are one tensor in some models of a pool and two in others.

Whether a model's are tied is a matter of its weights: a head that is stored apart and equals the embeddings bit for
bit computes what a tied one does. Where some models of a pool really have two tensors, all are merged as such: the head
of a tied model is then its embeddings, and the result is not tied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from evomerge.errors import PoolError
from evomerge.models import compatibility
from evomerge.models.architecture.language_part import LanguageNames, language_match
from evomerge.models.architecture.layout import Layout, name_problems, skeleton
from evomerge.models.architecture.names import NameMatch, match_names, tied_names
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.heads import without_head_problems
from evomerge.models.keeping import has_other_shell, without_kept_problems
from evomerge.recipes.heads import Heads
from evomerge.recipes.kept import Kept

_KEY = "tie_word_embeddings"


@dataclass
class Matched:
    """The models of a pool, each filled into a module of the pool's architecture.

    Attributes:
        configs: by model, with the pool's `tie_word_embeddings`.
        modules: by model, on the meta device, built from `configs`.
        matches: by model: how its checkpoint fills its module.
        own: by model: module and match by its own config.json, which an adapter was trained with.
        names: the match that gives the layout its names.
        tied: what the result's config.json says of `tie_word_embeddings`, where the models' differ.
    """

    configs: dict[str, Any]
    modules: dict[str, nn.Module] = field(default_factory=dict)
    matches: dict[str, NameMatch] = field(default_factory=dict)
    own: dict[str, tuple[nn.Module, NameMatch]] = field(default_factory=dict)
    names: NameMatch | None = None
    tied: bool | None = None


def _known_match(
    own: Mapping[str, tuple[nn.Module, NameMatch]], checkpoints: Mapping[str, Checkpoint], module: nn.Module, name: str
) -> NameMatch | None:
    """How a model before this one with the same tensors was matched: looking for patterns in all names takes long."""
    for other, (its_module, match) in own.items():
        if its_module is module and checkpoints[other].shapes == checkpoints[name].shapes:
            return match
    return None


def match_models(
    reference: str,
    configs: Mapping[str, Any],
    checkpoints: Mapping[str, Checkpoint],
    adapted: Collection[str],
    trust_remote_code: bool,
    problems: list[PoolError],
    heads: Heads | None = None,
    kept: Kept | None = None,
) -> Matched:
    """Fill every model's checkpoint into a module, tied or not as the pool can be merged.

    Args:
        reference: the model that the others are compared with.
        configs: transformers configurations by model.
        checkpoints: by model.
        adapted: the models that an adapter is folded into, which may part head and embeddings.
        trust_remote_code: let models that bring their own code run it.
        problems: what keeps models from being filled is added to it; then only `own` is complete.
        heads: of their own; models without one may then be of another task's class.
        kept: what only one model need have; others may then be plain language models beside one that sees.

    Raises:
        PoolError: transformers cannot build a module.
    """
    built: dict[tuple[Any, bool], nn.Module] = {}

    def module_of(name: str, tied: bool) -> nn.Module:
        config = configs[name] if is_tied(configs[name]) == tied else with_tie(configs[name], tied)
        if name in apart:
            return skeleton(config, trust_remote_code)
        key = (compatibility.depth_of(config), tied)
        if key not in built:
            # Depth and tying aside, what differs between models is looked at by `compatibility`.
            like = configs[reference] if key[0] == compatibility.depth_of(configs[reference]) else config
            built[key] = skeleton(with_tie(like, tied), trust_remote_code)
        return built[key]

    apart = {n for n, c in configs.items() if kept is not None and has_other_shell(c, configs[reference])}
    found = Matched(dict(configs))
    for name, config in configs.items():
        if name != reference and name not in apart:
            other = compatibility.architecture_problem(
                name, config, reference, configs[reference], heads is not None and name not in heads.tasks
            )
            other = other or compatibility.depth_problem(name, config, reference, configs[reference])
            if other is not None:
                problems.append(other)
                continue
        module = module_of(name, is_tied(config))
        match = _known_match(found.own, checkpoints, module, name) or match_names(module, checkpoints[name].shapes)
        if heads is not None and name not in heads.tasks:
            match = without_head_problems(match, heads, str(getattr(module, "base_model_prefix", "")))
        if kept is not None and name != reference and name not in apart:
            match = without_kept_problems(match, kept)
        found.own[name] = module, match
        problems += [PoolError(f"model {name!r}: {p[0]}", *p[1:]) for p in name_problems(match, type(module).__name__)]
        problems += compatibility.tied_problems(name, checkpoints[name], match)
    found.modules = {name: module for name, (module, _) in found.own.items()}
    found.matches = {name: match for name, (_, match) in found.own.items()}
    found.names = found.matches.get(reference)
    for name in apart & found.own.keys():
        found.matches[name] = language_match(found.matches[name], found.modules[name], found.modules[reference])
    if problems or len({is_tied(config) for config in configs.values()}) == 1:
        return found
    as_tied = {name: module_of(name, True) for name in configs}
    as_untied = {name: module_of(name, False) for name in configs}
    if tied_names(as_tied[reference]) == tied_names(as_untied[reference]):  # the class has nothing to tie
        tied = is_tied(configs[reference])
        found.configs = {name: with_tie(config, tied) for name, config in configs.items()}
        return found
    found.tied = tied = not apart and all(
        is_tied(config) or (name not in adapted and _has_equal_head(checkpoints[name], as_tied[name]))
        for name, config in configs.items()
    )
    found.configs = {name: with_tie(config, tied) for name, config in configs.items()}
    found.modules = as_tied if tied else as_untied
    names = LanguageNames.of(found.modules[reference])
    for name, config in configs.items():
        if name in apart:
            found.matches[name] = _with_own_head(found.matches[name], names)
        elif tied:
            found.matches[name] = match_names(as_tied[name], checkpoints[name].shapes)
        elif is_tied(config):
            found.matches[name] = _parted(found.matches[name], as_tied[name], as_untied[name])
    match = found.matches[reference]
    own = found.own[reference][1]
    named = {place: stored if place in own.stored else place for place, stored in match.stored.items()}
    found.names = replace(match, stored=named)
    return found


def is_tied(config: Any) -> bool:
    """Whether a configuration ties the head to the embeddings."""
    return bool(getattr(config, _KEY, False))


def with_tie(config: Any, tied: bool) -> Any:
    """The configuration, or a copy that ties head and embeddings or does not."""
    if is_tied(config) == tied:
        return config
    result = deepcopy(config)
    for part in {id(part): part for part in (result, result.get_text_config())}.values():
        setattr(part, _KEY, tied)
    return result


def _has_equal_head(checkpoint: Checkpoint, module: nn.Module) -> bool:
    """Whether a checkpoint stores twice, with equal values, what a module ties."""
    duplicates = match_names(module, checkpoint.shapes).duplicates
    return bool(duplicates) and all(checkpoint.same(name, kept) for name, kept in duplicates.items())


def _parted(match: NameMatch, tied: nn.Module, untied: nn.Module) -> NameMatch:
    """The match of a tied model with a module that is not: what was tied is read from the one tensor there is."""
    kept = tied_names(untied)
    stored = dict(match.stored)
    for place, source in tied_names(tied).items():
        if place not in kept and source in stored:
            stored[place] = stored[source]
    return replace(match, stored={place: stored[place] for place in untied.state_dict() if place in stored})


def _with_own_head(match: NameMatch, names: LanguageNames) -> NameMatch:
    """The match of a language part whose head is its embeddings, where the module's is a tensor of its own."""
    head = f"{names.head}.weight"
    if head in match.stored or names.embeddings is None or names.embeddings not in match.stored:
        return match
    return replace(match, stored={**match.stored, head: match.stored[names.embeddings]})


def stored_names(layout: Layout, match: NameMatch, model: str, reference: str) -> dict[str, str]:
    """A model's own tensor names by the layout's names; `PoolError` for a name that it has no tensor for."""
    stored: dict[str, str] = {}
    for join in layout.joins:
        own = match.joins.get(join.place)
        if own is not None and own.patterns == join.patterns:
            stored |= zip(join.names, own.names, strict=True)
    joined = {name for join in layout.joins for name in join.names}
    for name, place in layout.parameters.items():
        if place in match.stored and name not in joined:
            stored[name] = match.stored[place]
    for name, place in layout.parameters.items():
        if name not in stored:
            other = match.stored.get(place) or next(
                iter(match.joins[place].names if place in match.joins else ()), None
            )
            raise PoolError(
                f"model {model!r} has no tensor for {name!r} of {reference!r}"
                + (f", it stores {other!r} in its place" if other else ""),
                "all models of a pool store their weights in the same pieces",
                "load both and save them by save_pretrained(save_original_format=False)"
                if other
                else f"leave {model!r} out of the pool, or keep the tensor of {reference!r}: pool.kept",
            )
    return stored
