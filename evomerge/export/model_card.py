"""The model card of a merge: what it was made of and how, its scores, and how to load it.

A card is meant to be published, so it holds no paths: local sources appear under their folder's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Protocol

from huggingface_hub import EvalResult, ModelCardData

from evomerge.errors import RecipeError
from evomerge.export.adapter_card import PIPELINE, AdapterCard, library_of, loading_code
from evomerge.export.licences import NOT_ADVICE, licence_notes, stated_licences
from evomerge.export.switch_card import head_sections, switch_sections
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.architecture.layout import Layout
from evomerge.recipes.path import path_of
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import ModelRef
from evomerge.recipes.tokenizer_spec import ALIGNED, UNION
from evomerge.recipes.yaml_reader import dump_recipe
from evomerge.utils import safe_yaml
from evomerge.utils.files import read_bounded

_LARGEST_CARD = 16 * 2**20
MOST_STAGES = 50
"""Intermediates of a recipe that a card writes out."""
_LONGEST = 300  # characters of a licence's name or link
_TASKS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForSemanticSegmentation": "image-segmentation",
    "AutoModelForMaskGeneration": "mask-generation",
    "AutoModelForImageTextToText": "image-text-to-text",
    PIPELINE: "text-to-image",
}
"""Tasks of the hub by the class that loads a model."""
LICENSE_KEYS = ("license", "license_name", "license_link")


class ScoreLine(Protocol):
    """A line of a score table: `ScoreRow`, or anything that has its two attributes."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Value by ``task/metric``."""


@dataclass(frozen=True)
class ScoreRow:
    """One line of a score table.

    Attributes:
        name: of the model: the merge, a source, a baseline.
        metrics: value by ``task/metric``.
    """

    name: str
    metrics: Mapping[str, float]


def model_card(
    recipe: Recipe,
    layout: Layout,
    name: str,
    *,
    folders: Mapping[str, Sequence[Path]],
    loading: tuple[str, str | None] = ("AutoModelForCausalLM", "AutoTokenizer"),
    scores: Sequence[ScoreLine] = (),
    scores_title: str = "Held-out scores",
    adapter: AdapterCard | None = None,
    sections: Sequence[str] = (),
) -> str:
    """The README.md of a merged model, or of an adapter.

    Args:
        recipe: of the model.
        layout: of the pool.
        name: title of the card.
        folders: where each source model and its adapter lie, for the licences that their own cards declare.
        loading: the transformers classes that load the model and what prepares its inputs (see `auto_class`).
        scores: rows of the score table; no table without any.
        scores_title: heading of the score table.
        adapter: what to say of an adapter.
        sections: further ones, before the sources.
    """
    base = None if adapter is None else published_name(adapter.base)
    what = "It loads like any other model of its architecture." if base is None else "It is an adapter: PEFT loads it."
    licenses = source_licences(recipe, folders)
    every = [
        f"# {name}",
        f"A merge of {_count(recipe)} made with evomerge. {what}",
        *(["## Adapter", adapter.section(base)] if adapter is not None and base is not None else []),
        *(sections or switch_sections(recipe)),
        *head_sections(recipe),
        "## Sources",
        _sources(recipe, licenses),
        *_licence_section(licenses),
        *([f"## {scores_title}", score_table(scores)] if scores else []),
        *_path_sections(recipe),
        "## Recipe",
        _recipe_text(recipe, layout),
        "## Loading",
        loading_code(name, *loading, base),
    ]
    matter = _metadata(recipe, licenses, name, loading[0], scores, adapter).to_yaml(line_break="\n")
    return f"---\n{matter}\n---\n\n" + "\n\n".join(every) + "\n"


def source_licences(recipe: Recipe, folders: Mapping[str, Sequence[Path]]) -> dict[str, list[dict[str, str]]]:
    """The licences that the cards of models and adapters state, by model, of those that a recipe makes use of."""
    used = {*_merged(recipe), recipe.config_from, recipe.tokenizer_from}
    return {
        source: [card_license(folder) for folder in folders.get(source, ())]
        for source, _ in recipe.models
        if source in used
    }


def _licence_section(licenses: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """What the sources' licences ask for together; nothing where they agree and ask for little."""
    notes = licence_notes(stated_licences(licenses))
    if not notes:
        return []
    warning = ["**These licences may not go together: check before you publish or use the merge.**"]
    lines = "\n".join(f"- {note.text}." for note in notes)
    return ["## Licences", *(warning if any(note.conflict for note in notes) else []), lines, NOT_ADVICE]


def _path_sections(recipe: Recipe) -> list[str]:
    """The layers in order, where they are not those of a source in their places."""
    path = path_of(recipe)
    if path is None:
        return []
    note = f"{path.note[:1].upper()}{path.note[1:]}."
    return ["## Path", f"{path.title}. In order, by their numbers there: {path.text}.", note]


def published_name(ref: ModelRef) -> str:
    """A hub id, or the name of a local folder without the path to it."""
    return ref.location if is_on_hub(ref) else PurePath(ref.location).name


def is_on_hub(ref: ModelRef) -> bool:
    """Whether a reference is a hub id: those are pinned by a commit."""
    return ref.revision is not None


def card_license(folder: Path) -> dict[str, str]:
    """The licence entries in the front matter of a model's own card; empty when it has none."""
    try:
        text = read_bounded(folder / "README.md", _LARGEST_CARD).decode("utf-8", errors="replace")
    except OSError:
        return {}
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}
    try:
        matter = safe_yaml.parse(text[4 : text.index("\n---", 4)])
    except RecipeError:
        return {}
    own = matter if isinstance(matter, dict) else {}
    texts = {key: ", ".join(map(str, v)) if isinstance(v := own.get(key), list) else v for key in LICENSE_KEYS}
    return {key: " ".join(text.split())[:_LONGEST] for key, text in texts.items() if isinstance(text, str)}


def score_table(rows: Sequence[ScoreLine]) -> str:
    """A Markdown table: a line per model, a column per metric in the order of first use."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    lines = [["model", *metrics], ["---", *("---:" for _ in metrics)]]
    lines += [[row.name, *(f"{row.metrics[m]:.4f}" if m in row.metrics else "" for m in metrics)] for row in rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _metadata(
    recipe: Recipe,
    licenses: Mapping[str, Sequence[Mapping[str, str]]],
    name: str,
    loads: str,
    scores: Sequence[ScoreLine],
    adapter: AdapterCard | None,
) -> ModelCardData:
    """The front matter, as the hub wants it: the first line of the scores is the model's own."""
    hub = [part.location for source in licenses for part in _parts(recipe.ref(source)) if is_on_hub(part)]
    bases = {"base_model": list(dict.fromkeys(hub)), "base_model_relation": "merge"} if hub else {}
    # A licence is stated for the merge only when every source states that same one.
    stated = [entry for entries in licenses.values() for entry in entries or ({},)]
    same = dict(stated[0]) if stated[0] and all(entry == stated[0] for entry in stated) else {}
    task = _TASKS.get(loads)
    results = [_result(metric, value, task) for metric, value in (scores[0].metrics if scores else {}).items()]
    own = {"library_name": library_of(loads), **bases} if adapter is None else adapter.metadata
    return ModelCardData(
        **own,
        **same,
        pipeline_tag=task,
        tags=["merge", "evomerge"],
        **({"model_name": name, "eval_results": results} if results else {}),
    )


def _result(metric: str, value: float, task: str | None) -> EvalResult:
    """A score in the hub's terms; it knows no tasks of lm-eval, so that these are data sets by their names."""
    dataset, _, measure = metric.rpartition("/")
    dataset = dataset or "scores"
    kind = "perplexity" if "perplexity" in measure else "accuracy" if measure.startswith("acc") else measure
    return EvalResult(
        task_type=task or "other",
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=kind,
        metric_name=measure,
        metric_value=value,
    )


def _parts(ref: ModelRef) -> tuple[ModelRef, ...]:
    """A model and, where it has one, its adapter."""
    return (ref,) if ref.adapter is None else (ref, ref.adapter)


def _sources(recipe: Recipe, licenses: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    lines = [["name", "model", "revision or fingerprint", "licence"], ["---"] * 4]
    for name, ref in recipe.models:
        parts = _parts(ref)
        pins = " + ".join(f"`{part.revision or part.fingerprint or '-'}`" for part in parts)
        found = licenses[name] or ({},) if name in licenses else ()
        stated = [", ".join(entry.values()) or "not stated" for entry in found] or ["not part of the merge"]
        lines.append([name, " with the adapter ".join(map(_link, parts)), pins, " + ".join(dict.fromkeys(stated))])
    table = "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)
    note = "The licences are those that the sources' own cards state; all of them apply to the merge."
    what = "Configuration and tokenizer are those" if recipe.network is None else "The network's configuration is that"
    configured = f"{what} of {recipe.config_from}."
    if (own := recipe.tokenizer_from) not in (None, recipe.config_from):
        configured = f"The configuration is that of {recipe.config_from}, the tokenizer that of {own}."
    if recipe.tokenizer is not None:
        spec = recipe.tokenizer
        known = {UNION: "the union of all models'", ALIGNED: "that of the model with all tokens"}
        own = known.get(spec.source, f"that of {spec.source}") + (", with tokens added" if spec.tokens else "")
        configured = f"The configuration is that of {recipe.config_from}, the tokenizer {own}."
    return f"{table}\n\n{configured}" + (f" {note}" if any(map(any, licenses.values())) else "")


def _link(part: ModelRef) -> str:
    shown = published_name(part)
    return f"[{shown}](https://huggingface.co/{shown})" if is_on_hub(part) else f"local folder `{shown}`"


def _recipe_text(recipe: Recipe, layout: Layout) -> str:
    """The recipe as mergekit YAML where that says it all, as evomerge's own otherwise; without paths.

    One of a long lineage is not written out: nobody reads it there.
    """
    exact = "`evomerge_recipe.yaml` beside this file holds the exact recipe."
    if len(recipe.stages) > MOST_STAGES:
        return f"A lineage of {len(recipe.stages):,} merges. {exact}"
    parts = {part.location: published_name(part) for _, ref in recipe.models for part in _parts(ref)}
    # Two folders of one name would read as one model: then the recipe's own names are used.
    alike = {shown for shown, count in Counter(parts.values()).items() if count > 1}
    public = _published(recipe, {name: _published_ref(ref, name, alike) for name, ref in recipe.models})
    try:
        text = to_mergekit(public, layout)
    except RecipeError as error:
        text, why = dump_recipe(public), f"As an evomerge recipe ({error.given})."
    else:
        why = "As mergekit YAML, with folder names for local sources."
    return f"{why} {exact}\n\n```yaml\n{text.rstrip()}\n```"


def _published_ref(ref: ModelRef, name: str, alike: Collection[str]) -> ModelRef:
    shown = published_name(ref)
    adapter = None if ref.adapter is None else _published_ref(ref.adapter, f"{name}-adapter", alike)
    return replace(ref, location=name if shown in alike else shown, adapter=adapter)


def _published(recipe: Recipe, refs: Mapping[str, ModelRef]) -> Recipe:
    """`recipe` over other references of its models, intermediates included."""
    made: dict[str | None, Recipe] = {}
    for name, stage in (*recipe.stages.items(), (None, recipe)):  # each after those that it takes
        made[name] = replace(
            stage,
            models=tuple((model, refs[model]) for model, _ in stage.models),
            intermediates=tuple((inner, made[inner]) for inner, _ in stage.intermediates),
        )
    return made[None]


def _count(recipe: Recipe) -> str:
    used = _merged(recipe)
    return f"{len(used)} models" if len(used) != 1 else "one model"


def _merged(recipe: Recipe) -> set[str]:
    """The models whose weights a recipe takes."""
    entries = [own for part in (recipe, *recipe.stages.values()) for own in part.slices]
    used = {source.model for own in entries for source in (*own.inputs, *([own.base] if own.base else []))}
    return used - recipe.stages.keys()


def _cell(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
