"""A ``mergekit-evolve`` configuration as an experiment of evomerge's that searches for the same."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigError
from evomerge.mergekit.evolve import METHODS, Evolve, read_evolve
from evomerge.mergekit.references import Reference, name_models, read_reference
from evomerge.models.architecture.layout import Layout
from evomerge.models.opening import open_pool
from evomerge.recipes.slices import COMPONENTS, LAYER_COMPONENTS, Component
from evomerge.recipes.tokenizer_spec import UNION

# mergekit-evolve adds metrics as they are; in evomerge a weight above zero always asks for better ones.
_LESS_IS_BETTER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter")
_SIGMA = 1 / 6
_EVALUATIONS = 100


@dataclass
class _Notes:
    """What differs, for the comment above the experiment."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        self.lines.append(line)


def experiment_from_evolve(path: Path, name: str, include_path: Sequence[str] = ()) -> str:
    """The YAML of an experiment (for ``conf/experiment/NAME.yaml``) that searches for what the file does.

    The models are opened, from configurations and headers only, where their layers and tensors are asked for: for
    `filters` and `smooth`. What is harmlessly different is said in the comment above.

    Args:
        path: the ``mergekit-evolve`` configuration.
        name: of the experiment's runs.
        include_path: folders with the tasks' YAMLs (``mergekit-evolve --task-search-path``).

    Raises:
        ConfigError: the file is none, or asks for what evomerge has no word for; names the key and the reason.
        PoolError: the models cannot be opened, or not merged with each other.
    """
    evolve = read_evolve(path)
    notes = _Notes()
    try:
        pool = _pool(evolve, path.parent, notes)
        layout = _layout(pool) if evolve.filters or evolve.smooth else None
        space = _space(evolve, layout, notes)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.given}", error.allowed, error.do) from None
    width = 2.0 if evolve.negative and evolve.method != "slerp" else 1.0
    _other_notes(evolve, notes)
    content = {
        "name": f"{name}-${{now:%Y-%m-%d_%H-%M-%S}}",
        "pool": pool,
        "search": _Line(evaluations=_EVALUATIONS),
        "search_space": space,
        "strategy": {"sigma0": _SIGMA / width},
        "fitness": _fitness(evolve, include_path),
    }
    head = ["# @package _global_", f"# The search of {path.name}, a mergekit-evolve configuration."]
    for line in notes.lines:
        head += textwrap.wrap(line, 116, initial_indent="# - ", subsequent_indent="#   ")
    defaults = (
        "defaults:\n  - override /pool: custom\n  - override /search_space: parameter\n"
        "  - override /strategy: cma_es\n  - override /fitness: lm_eval\n"
    )
    parts = [yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, width=116) for key, value in content.items()]
    return "\n".join(head) + "\n" + defaults + "\n" + "\n".join(parts)


class _Line(dict[str, Any]):
    """A mapping written on one line."""


class _Dumper(yaml.SafeDumper):
    """Lists of words and small mappings on one line, nothing as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never."""
        return True


_Dumper.add_representer(
    _Line, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True)
)
_Dumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", data, flow_style=not any(isinstance(item, dict) for item in data)
    ),
)


def _pool(evolve: Evolve, folder: Path, notes: _Notes) -> dict[str, Any]:
    """The `pool` group."""
    based = evolve.method in ("ties", "dare_ties", "task_arithmetic")
    first: list[Reference] = [evolve.base] if evolve.base is not None else []
    names = name_models(dict.fromkeys([*first, *evolve.models]))
    for reference, name in names.items():
        if "${" in str(reference):
            raise ConfigError(f"model {name!r} lies in {reference}", "a path without ${")
    if based and evolve.base in evolve.models:
        notes.add("The base is one of the models there; its weight changes nothing, and is no gene here.")
    vocabulary = {} if evolve.tokenizer is None else _vocabulary(evolve.tokenizer, evolve, names, notes)
    return {
        "models": {name: reference.location(folder) for reference, name in names.items()},
        "base": names[evolve.base] if based and evolve.base is not None else None,
        "dtype": "bfloat16",
        **vocabulary,
    }


def _vocabulary(given: str, evolve: Evolve, names: Mapping[Reference, str], notes: _Notes) -> dict[str, Any]:
    """The vocabulary that models are brought to there."""
    if given == UNION:
        return {"tokenizer": UNION}
    source = evolve.base if given == "base" else read_reference(given, "genome.tokenizer_source")
    if source is not None and source in names:
        return {"tokenizer": names[source]}
    notes.add(f"tokenizer_source {given} is left out: it is none of the models.")
    return {}


def _layout(pool: dict[str, Any]) -> Layout:
    own = pool["models"], pool["base"]
    return open_pool(*own, dtype=pool["dtype"], fingerprints=False, tokenizer=pool.get("tokenizer"), kept=None).layout


def _space(evolve: Evolve, layout: Layout | None, notes: _Notes) -> dict[str, Any]:
    """The `search_space` group."""
    groups = 0
    if layout is not None and evolve.granularity:
        if layout.layers % evolve.granularity:
            raise ConfigError(
                f"genome.layer_granularity is {evolve.granularity} and the models have {layout.layers} layers",
                "a divisor of the number of layers",
            )
        groups = layout.layers // evolve.granularity
    smooth = evolve.smooth and groups > 1
    whole = evolve.granularity == 0 or (evolve.smooth and not smooth)
    space: dict[str, Any] = {"method": evolve.method}
    if smooth:
        space |= {"interpolation": "linear", "anchors": groups}
    else:
        space["layer_group"] = "all" if whole else evolve.granularity
    space["components"] = _components(_sets(evolve.filters, layout, notes), whole)
    if not whole:
        at = "the first group's; final norm and head those of the " + ("first" if smooth else "last")
        notes.add(
            f"Embeddings, and final norm with head, have genes of their own; in mergekit-evolve embeddings take {at}."
        )
    space["parameters"] = _parameters(evolve, notes)
    if evolve.method != "slerp":
        space["normalize"] = evolve.normalize
        space["negative_weights"] = evolve.negative
    return space


def _sets(filters: Sequence[str], layout: Layout | None, notes: _Notes) -> dict[Component, int]:
    """Which of the parameter sets each component has: that of the first filter in its tensors' names, or the last.

    Raises:
        ConfigError: a filter tells tensors of one component apart.
    """
    if layout is None:
        return dict.fromkeys(COMPONENTS, 0)
    found: dict[Component, int] = {}
    examples: dict[Component, str] = {}
    for slice_, names in layout.tensors.items():
        for name in names:
            own = next((i for i, part in enumerate(filters) if part in name), len(filters))
            known = found.setdefault(slice_.component, own)
            example = examples.setdefault(slice_.component, name)
            if known != own:
                raise ConfigError(
                    f"genome.filters tell {name} from {example}, both of component {slice_.component}",
                    f"evomerge's genes are by component ({', '.join(COMPONENTS)}): filters that take them whole",
                    "leave out the filter, or name one that both have in common",
                )
    for i, part in enumerate(filters):
        if i not in found.values():
            notes.add(f"The filter {part!r} decides for no tensor.")
    return found


def _components(sets: dict[Component, int], whole: bool) -> list[list[str]]:
    """Components that share genes."""
    lists: dict[tuple[int, int], list[str]] = {}
    for component in COMPONENTS:
        if component in sets:
            # Layers in groups: what lies outside them has genes of its own, before and after the layers.
            place = 0 if whole or component in LAYER_COMPONENTS else 1 if component == "embed" else 2
            lists.setdefault((place, sets[component]), []).append(component)
    return list(lists.values())


def _parameters(evolve: Evolve, notes: _Notes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in METHODS[evolve.method]:
        if name == "weight":
            low: dict[str, float] = {} if evolve.negative else {"low": 0.0}
            found[name] = _Line({**low, "high": 1.0, "initial": 1 / len(evolve.models)})
            notes.add("Weights have bounds here: raise search_space.parameters.weight.high to search beyond.")
        elif name == "density":
            found[name] = _Line(low=0.0, high=1.0, initial=1.0)
        else:
            found[name] = _Line(low=0.0, high=1.0, initial=0.5)
            notes.add("mergekit-evolve has a gene per model and takes t from their softmax; here t is the gene.")
    if evolve.method == "dare_ties":
        found["rescale_by"] = "magnitude"  # as mergekit does
        notes.add("mergekit-evolve draws other masks at every evaluation; here search_space.mask_seed decides.")
    return found


def _fitness(evolve: Evolve, include_path: Sequence[str]) -> dict[str, Any]:
    """The `fitness` group: the mean over tasks of their weighted metrics, which ranks as mergekit-evolve's sum."""
    metrics: dict[str, _Line] = {}
    for task in evolve.tasks:
        name, _, filter_ = task.metric.partition(",")
        sign = -1.0 if name in _LESS_IS_BETTER else 1.0
        key = name if filter_ in ("", "none") else task.metric
        own = metrics.setdefault(task.name, _Line())
        own[key] = own.get(key, 0.0) + sign * task.weight
    found: dict[str, Any] = {"include_path": list(include_path)} if include_path else {}
    found["tasks"] = [_Line(task=name, metrics=own) for name, own in metrics.items()]
    optional = {"limit": evolve.limit, "num_fewshot": evolve.fewshot}
    found |= {key: value for key, value in optional.items() if value is not None}
    found["apply_chat_template"] = evolve.chat_template
    found["fewshot_as_multiturn"] = evolve.multiturn
    return found


def _other_notes(evolve: Evolve, notes: _Notes) -> None:
    if evolve.shuffle:
        notes.add("Documents are not shuffled: `limit` takes the first.")
    if evolve.random_init:
        notes.add("The search starts at the uniform average, not at random.")
    notes.add("Arithmetic is in float32 and rounds once to bfloat16, in which mergekit-evolve computes.")
