"""What a pool keeps of one model: which tensors, and how models without them fit in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from evomerge.errors import ConfigError, PoolError, nearest
from evomerge.models import compatibility
from evomerge.models.architecture.language_part import LanguageNames, is_projector, patterns_of, sees
from evomerge.models.architecture.layout import Layout, skeleton
from evomerge.models.architecture.names import NameMatch, match_names
from evomerge.models.architecture.stacks import find_stacks, layer_place
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.heads import AUTO, Setting
from evomerge.recipes.kept import Kept


def find_kept(
    setting: Setting,
    model: str | None,
    base: str | None,
    sources: Sequence[str],
    configs: Mapping[str, Any],
    checkpoints: Mapping[str, Checkpoint],
    trust_remote_code: bool = False,
) -> Kept | None:
    """Which tensors of a pool are kept; ``None`` where all are merged.

    By default these are, of models that see, all that looks at images: what is outside of the language model. What
    carries images over to it (the projector) is merged where all models have it in one shape.

    Args:
        setting: `AUTO`, patterns of names in the module, or ``None``.
        model: whose they are; by default the base's, or else of the first source that sees.
        base: of the pool.
        sources: of the pool, in order.
        configs: transformers configurations of all models.
        checkpoints: of all models.
        trust_remote_code: let models that bring their own code run it.

    Raises:
        ConfigError: nothing is kept, and a model is named.
        PoolError: a pattern that matches nothing, or a layer's tensor.
    """
    order = [*([base] if base is not None else []), *sources]
    seeing = [name for name in order if sees(configs[name])]
    giver = model or next(iter(seeing), order[0])
    if setting is None or (setting == AUTO and not sees(configs[giver])):
        if model is not None:
            why = "nothing is kept" if setting is None else f"{model!r} has no part that looks at images"
            do = f"one of {', '.join(seeing)}" if seeing else "set pool.kept to patterns of names"
            raise ConfigError(f"pool.kept_from is {model!r}, and {why}", "a model with tensors to keep", do)
        return None
    module = skeleton(configs[giver], trust_remote_code)
    places = list(module.state_dict())
    if setting == AUTO:
        language = LanguageNames.of(module)
        outside = [place for place in places if not language.has(place)]
        projector = [place for place in outside if is_projector(place)]
        others = [checkpoints[name] for name in configs if name != giver]
        if _all_have(projector, module, others, configs, giver):
            outside = [place for place in outside if place not in projector]
        return Kept(patterns_of(outside, places), giver) if outside else None
    patterns = tuple(dict.fromkeys(p.strip() for p in ([setting] if isinstance(setting, str) else setting)))
    stacks = find_stacks(module)
    outer = [place for place in places if layer_place(place, stacks) is None]
    for pattern in patterns:
        matched = [place for place in places if fnmatchcase(place, pattern)]
        within = next((place for place in matched if layer_place(place, stacks) is not None), None)
        if not matched or within is not None:
            raise PoolError(
                f"pool.kept has {pattern!r}, which is the name of "
                + ("no tensor" if within is None else f"a layer's tensor, {within}"),
                f"tensors outside the layers: {nearest(pattern, outer)}",
                "give a name or a pattern such as 'model.vision_tower.*'",
            )
    return Kept(patterns, giver)


def _all_have(
    projector: Sequence[str], module: nn.Module, others: Sequence[Checkpoint], configs: Mapping[str, Any], giver: str
) -> bool:
    """Whether all models have a projector, of one shape and on one kind of eyes."""
    wanted = configs[giver]
    for config in configs.values():
        if config.model_type != wanted.model_type or not sees(config):
            return False
        if any(compatibility.config_problems("", config.vision_config, "", wanted.vision_config)):
            return False
    state = module.state_dict()
    for checkpoint in others:
        stored = match_names(module, checkpoint.shapes).stored
        if any(place not in stored or checkpoint.shapes[stored[place]] != state[place].shape for place in projector):
            return False
    return True


def has_other_shell(config: Any, reference: Any) -> bool:
    """Whether a model's language part is the reference's by its kind, in another model: a plain one, say."""
    if config.model_type == reference.model_type or not (sees(config) or sees(reference)):
        return False
    own, wanted = config.get_text_config().model_type, reference.get_text_config().model_type
    # qwen2_vl_text is a qwen2 that counts positions in images otherwise.
    return bool(own == wanted or wanted.startswith(f"{own}_") or own.startswith(f"{wanted}_"))


def without_kept_problems(match: NameMatch, kept: Kept) -> NameMatch:
    """The match of a model that need not have what is kept of another, whatever it has in its place."""
    short = [pattern.partition(".")[2] for pattern in kept.tensors]

    def is_kept(name: str) -> bool:
        # Older checkpoints have names without the prefix of the base model.
        return kept.has(name) or any(pattern and fnmatchcase(name, pattern) for pattern in short)

    return replace(
        match,
        missing=tuple(place for place in match.missing if not kept.has(place)),
        unexpected=tuple(name for name in match.unexpected if not is_kept(name)),
    )


def kept_names(kept: Kept, layout: Layout, match: NameMatch) -> dict[str, str]:
    """Names of the kept tensors in the checkpoint of their model, by their names in the module.

    Args:
        kept: of the pool.
        layout: with all tensors.
        match: of the model that they are of.

    Raises:
        PoolError: one is joined with others on loading.
    """
    joined = {place for join in layout.joins for place in join.places}
    found: dict[str, str] = {}
    for place in kept.among(dict.fromkeys(layout.parameters.values())):
        if place in joined:
            raise PoolError(
                f"model {kept.model!r} stores {place!r} joined with others", "what is kept is stored as such"
            )
        found[place] = match.stored[place]
    return found


def compared_parts(config: Any, reference: Any, layout: Layout) -> tuple[Any, Any]:
    """What is compared of two configurations: their language models', where the one has another kind of eyes, or none.

    Keys that only one kind of language model has are left out where the two are called otherwise.

    Args:
        config, reference: transformers configurations.
        layout: of what is merged. Where projectors are, it matters what they read.
    """
    projector = any(is_projector(place) for place in layout.parameters.values())
    if config.model_type == reference.model_type and (projector or not sees(reference)):
        return config, reference
    own, wanted = config.get_text_config(), reference.get_text_config()
    if own.model_type == wanted.model_type:
        return own, wanted
    shared = own.to_dict().keys() & wanted.to_dict().keys()
    return _Shared(own, shared), _Shared(wanted, shared)


class _Shared:
    """A configuration with some of its keys only."""

    def __init__(self, config: Any, keys: Set[str]) -> None:
        self._config, self._keys = config, keys

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)

    def get_text_config(self) -> Any:
        """Itself, of which there is a text alone."""
        return self._config

    def to_dict(self) -> dict[str, Any]:
        """The keys that there are."""
        return {key: value for key, value in self._config.to_dict().items() if key in self._keys}
