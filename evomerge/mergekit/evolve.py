"""What a ``mergekit-evolve`` configuration asks for, every key checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from evomerge.errors import ConfigError, EvomergeError, RecipeError, nearest
from evomerge.mergekit.references import Reference, read_reference
from evomerge.utils import safe_yaml

METHODS = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "slerp": ("t",),
}
"""The methods that it searches, with the parameters that are genes."""

_NORMALISED = ("ties", "dare_ties", "linear")
_BASED = ("ties", "dare_ties", "task_arithmetic")

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A task of lm-eval's, one of its metrics, and that one's factor in the score."""

    name: str
    metric: str
    weight: float


@dataclass(frozen=True)
class Evolve:
    """A configuration, defaults filled in.

    Attributes:
        models: whose parameters are genes.
        method: of merging.
        base: the base model, which may be one of `models`.
        tokenizer: ``base``, ``union``, a model, or ``None``.
        granularity: layers that share genes; 0 for all.
        normalize: whether weights are divided by their sum.
        negative: whether weights may be negative.
        filters: parts of tensor names with genes of their own; the other tensors share the last ones.
        smooth: whether layers are interpolated between the groups.
        tasks: what is scored.
        limit, fewshot, chat_template, multiturn: of the tasks.
        shuffle, random_init: what evomerge does otherwise.
    """

    models: tuple[Reference, ...]
    method: str
    base: Reference | None
    tokenizer: str | None
    granularity: int
    normalize: bool
    negative: bool
    filters: tuple[str, ...]
    smooth: bool
    tasks: tuple[Task, ...]
    limit: int | None
    fewshot: int | None
    chat_template: bool
    multiturn: bool
    shuffle: bool
    random_init: bool


def read_evolve(path: Path) -> Evolve:
    """Read a configuration.

    Raises:
        ConfigError: the file is no such configuration; names the key.
    """
    try:
        text = safe_yaml.read_text(path)
    except RecipeError as error:
        raise ConfigError(error.given, "a mergekit-evolve configuration in YAML") from None
    try:
        return _evolve(safe_yaml.parse(text))
    except EvomergeError as error:
        raise ConfigError(f"{path}: {error.given}", error.allowed, error.do) from None


def _evolve(content: Any) -> Evolve:
    if isinstance(content, dict) and "merge_method" in content:
        raise ConfigError(
            "this is a merge, not a search",
            "a mergekit-evolve configuration, with genome and tasks",
            "`evomerge merge` and `evomerge export` read it",
        )
    switches = ("shuffle", "random_init", "apply_chat_template", "fewshot_as_multiturn")
    top = safe_yaml.mapping(content, "", ("genome", "tasks"), ("limit", "num_fewshot", *switches))
    genome = safe_yaml.mapping(
        top["genome"],
        "genome",
        ("models", "merge_method"),
        (
            "base_model",
            "tokenizer_source",
            "layer_granularity",
            "normalize",
            "allow_negative_weights",
            "filters",
            "smooth",
        ),
    )
    method = safe_yaml.text(genome["merge_method"], "genome.merge_method")
    if method not in METHODS:
        raise RecipeError(f"genome.merge_method is {method!r}", nearest(method, METHODS))
    listed = safe_yaml.items(genome["models"], "genome.models")
    normalize = safe_yaml.optional(genome, "normalize", "genome", _flag)
    evolve = Evolve(
        models=tuple(read_reference(item, f"genome.models[{i}]") for i, item in enumerate(listed)),
        method=method,
        base=safe_yaml.optional(genome, "base_model", "genome", read_reference),
        tokenizer=safe_yaml.optional(genome, "tokenizer_source", "genome", safe_yaml.text),
        granularity=max(0, _or(safe_yaml.optional(genome, "layer_granularity", "genome", safe_yaml.integer), 0)),
        normalize=method in _NORMALISED if normalize is None else normalize,
        negative=_or(safe_yaml.optional(genome, "allow_negative_weights", "genome", _flag), False),
        filters=tuple(_filters(genome.get("filters"))),
        smooth=_or(safe_yaml.optional(genome, "smooth", "genome", _flag), False),
        tasks=tuple(_task(item, f"tasks[{i}]") for i, item in enumerate(safe_yaml.items(top["tasks"], "tasks"))),
        limit=safe_yaml.optional(top, "limit", "", safe_yaml.integer),
        fewshot=safe_yaml.optional(top, "num_fewshot", "", safe_yaml.integer),
        chat_template=_or(safe_yaml.optional(top, "apply_chat_template", "", _flag), True),
        multiturn=_or(safe_yaml.optional(top, "fewshot_as_multiturn", "", _flag), True),
        shuffle=_or(safe_yaml.optional(top, "shuffle", "", _flag), False),
        random_init=_or(safe_yaml.optional(top, "random_init", "", _flag), False),
    )
    _check(evolve)
    return evolve


def _check(evolve: Evolve) -> None:
    """Refuse what mergekit-evolve refuses, or fails at, and what evomerge has no word for."""
    for i, model in enumerate(evolve.models):
        if model in evolve.models[:i]:
            raise ConfigError(f"genome.models[{i}] is {model} a second time", "every model once")
    outside = evolve.base is not None and evolve.base not in evolve.models
    if evolve.method in _BASED and evolve.base is None:
        raise ConfigError("genome.base_model is missing", f"{evolve.method} needs one")
    if evolve.method in ("linear", "slerp") and outside:
        raise ConfigError(
            f"genome.base_model is not one of genome.models, and {evolve.method} has no use for another",
            "one of the models, or none",
        )
    if evolve.method in _BASED and evolve.base in evolve.models and len(evolve.models) == 1:
        raise ConfigError("genome.models has the base only", "a model besides genome.base_model")
    if evolve.method == "slerp":
        for key, given in (("smooth", evolve.smooth), ("filters", bool(evolve.filters))):
            if given:
                raise ConfigError(f"genome.{key} is given", "slerp has none, in mergekit-evolve neither")
        if len(evolve.models) != 2:
            raise ConfigError(
                f"genome.models has {len(evolve.models)} models",
                "slerp takes two: evomerge does not choose two of many by layer",
                "name two, or choose another genome.merge_method",
            )
    elif evolve.negative and evolve.normalize:
        raise ConfigError(
            "genome.allow_negative_weights is true and weights are normalised",
            "weights that may cancel cannot be divided by their sum",
            "set genome.normalize: false, or genome.allow_negative_weights: false",
        )


def _task(content: Any, where: str) -> Task:
    if isinstance(content, str):
        return Task(safe_yaml.text(content, where), "acc,none", 1.0)
    fields = safe_yaml.mapping(content, where, ("name",), ("weight", "metric"))
    return Task(
        safe_yaml.text(fields["name"], f"{where}.name"),
        _or(safe_yaml.optional(fields, "metric", where, safe_yaml.text), "acc,none"),
        float(_or(safe_yaml.optional(fields, "weight", where, safe_yaml.number), 1.0)),
    )


def _filters(content: Any) -> list[str]:
    if content is None:
        return []
    listed = safe_yaml.items(content, "genome.filters")
    return [safe_yaml.text(item, f"genome.filters[{i}]") for i, item in enumerate(listed)]


def _flag(content: Any, where: str) -> bool:
    if not isinstance(content, bool):
        raise RecipeError(f"{where} is {safe_yaml.shown(content)}", "true or false")
    return content


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
