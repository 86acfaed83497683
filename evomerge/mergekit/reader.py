"""Recipes from mergekit YAML: what ``mergekit-yaml`` or ``mergekit-multi`` would merge, as an evomerge recipe.

Merging is in float32 whatever the file's `dtype` says, and rounds once, to `out_dtype` or else to `dtype`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import RecipeError, nearest
from evomerge.merge.methods import specs
from evomerge.mergekit.document import Document, read_documents
from evomerge.mergekit.forms import FORMS, PARAMETERS, form_of, said_besides
from evomerge.mergekit.references import Reference, name_models
from evomerge.mergekit.slices import SliceReader
from evomerge.models.pool import Pool
from evomerge.models.vocabularies.row_map import RowMap
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import DTYPES, Dtype
from evomerge.recipes.tokenizer_spec import TokenizerSpec

MAX_DEPTH = 200


@dataclass(frozen=True)
class MergekitFile:
    """A mergekit file that was read and not yet matched with its models.

    Attributes:
        models: location by name of every model that it names; the one that gives the configuration comes first.
        base: which of them is the base of the pool, or ``None``.
        dtype: of the result; ``auto`` where the file leaves it to the models.
        notes: what the file says and mergekit does not heed, a line each.
        tokenizer: the vocabulary that the models are to be brought to; ``None`` where the file does not say.
    """

    models: Mapping[str, str]
    base: str | None
    dtype: str
    notes: tuple[str, ...]
    tokenizer: TokenizerSpec | None
    _result: Document
    _stages: Mapping[str, Document]
    _names: Mapping[Reference, str]

    def recipe(self, pool: Pool) -> Recipe:
        """The recipe over a pool of this file's models, every parameter written out.

        Raises:
            RecipeError: layers that do not exist, a base that is missing or a value that a method does not accept.
        """
        if pool.layout.encoder:
            raise RecipeError("the models are encoder-decoders", "mergekit's files are of one stack of layers")
        made: dict[str, Recipe] = {}
        for name, document in self._stages.items():  # each after those that it takes
            try:
                made[name] = self._recipe(document, pool, made)
            except RecipeError as error:
                raise RecipeError(f"stage {name}: {error.given}", error.allowed, error.do) from None
        return self._recipe(self._result, pool, made)

    def _recipe(self, document: Document, pool: Pool, made: Mapping[str, Recipe]) -> Recipe:
        stages = {name: made[name] for name in _taken(document, self._stages)}
        reader = SliceReader(document, pool.layout, self._names, stages)
        slices = reader.slices()
        used = {source.model for s in slices for source in (*s.inputs, *([s.base] if s.base else []))}
        config_from, tokenizer_from = self._donors(document, stages)
        heads = pool.info.heads
        if heads is not None and config_from not in heads.tasks:
            config_from = pool.info.config_from
        kept = pool.info.kept
        recipe = Recipe(
            models=pool.info.refs,
            slices=tuple(slices),
            dtype=_dtype(document.dtype, pool),
            config_from=config_from if kept is None else kept.model,
            intermediates=tuple((name, stage) for name, stage in stages.items() if name in used),
            tokenizer_from=tokenizer_from if tokenizer_from != config_from and pool.vocabulary is None else None,
            tokenizer=pool.info.tokenizer,
            heads=heads,
            kept=kept.tensors if kept is not None else (),
            dense=pool.info.dense,
        )
        if self.tokenizer is not None and pool.vocabulary is not None:
            _check_rows(recipe, pool.vocabulary.rows)
        recipe.check(specs())
        return recipe

    def _donors(self, document: Document, stages: Mapping[str, Recipe]) -> tuple[str, str]:
        """The models that configuration and tokenizer come from: those of an intermediate are its own donors."""
        base = _donor(document)
        stage = stages.get(base.path)
        config = stage.config_from if stage else self._names[base]
        tokenizer = base
        if document.tokenizer is not None and document.tokenizer.source is not None:
            tokenizer = document.tokenizer.source
        stage = stages.get(tokenizer.path)
        return config, (stage.tokenizer_from or stage.config_from) if stage else self._names[tokenizer]


def read_mergekit(text: str, source: str = "mergekit file", folder: Path | None = None) -> MergekitFile:
    """Read a mergekit file: one merge, or several stages of which one is the result.

    The result is the stage without a name, or the only one that no other takes.

    Args:
        text: YAML.
        source: the file's name, for messages.
        folder: where the file lies: relative models that are not found from the current directory are looked for there.

    Raises:
        RecipeError: the text is not such a file, or asks for what evomerge does not do; names the key and the reason.
    """
    try:
        return _file(read_documents(text), folder)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error.given}", error.allowed, error.do) from None


def _file(documents: list[Document], folder: Path | None) -> MergekitFile:
    named: dict[str, Document] = {}
    for document in documents:
        if document.name is not None:
            if document.name in named:
                raise RecipeError(f"two stages are called {document.name!r}", "every name once")
            named[document.name] = document
    result, stages = _result(documents, named)
    notes = [f"stage {name} is left out: the result does not take it" for name in named if name not in stages]
    if result.name is not None:
        notes = [note for note in notes if not note.startswith(f"stage {result.name} ")]
    used = [*stages.values(), result]
    first = _first_model(result, stages)
    references = dict.fromkeys([first, *(r for d in used for r in d.references() if r.path not in stages)])
    names = name_models(references, taken=stages)
    for document in used:
        notes += _ignored(document)
    return MergekitFile(
        models={names[reference]: reference.location(folder) for reference in references},
        base=names[first] if result.base is not None and len(names) > 1 else None,
        dtype=result.dtype or "auto",
        notes=tuple(dict.fromkeys(notes)),
        tokenizer=_vocabulary(result, stages, names),
        _result=result,
        _stages=stages,
        _names=names,
    )


def _vocabulary(
    result: Document, stages: Mapping[str, Document], names: Mapping[Reference, str]
) -> TokenizerSpec | None:
    """The vocabulary of all models; `RecipeError` where stages would need several."""
    entry = result.tokenizer
    if not stages:
        return None if entry is None else entry.named(names)
    for name, document in (*stages.items(), ("the result", result)):
        if document.tokenizer is not None and not document.tokenizer.is_plain:
            raise RecipeError(
                f"{document.tokenizer.key} of {name} makes a vocabulary, and the file has several stages",
                "one vocabulary for all of them: base, or a model, in files of several stages",
                "merge the stages one by one",
            )
    return None


def _check_rows(recipe: Recipe, rows: RowMap) -> None:
    """`RecipeError` where mergekit takes rows of tokens that models lack from other models than the pool does."""
    entries = {str(entry.slice): entry for entry in recipe.slices}
    for name in ("embed", "head"):
        entry = entries.get(name)
        if entry is None:
            continue
        sources = {source.model for source in (*entry.inputs, *([entry.base] if entry.base else []))}
        for model in rows.rows:
            if model not in sources and any(rows.lacking(own) > len(rows.averaged) for own in sources):
                raise RecipeError(
                    f"{model} is not merged into the {name}, and its tokens are to be in the vocabulary",
                    "mergekit takes rows only from models that are merged there",
                    "name it among the sources of the first and the last slice",
                )


def _result(documents: list[Document], named: Mapping[str, Document]) -> tuple[Document, dict[str, Document]]:
    """The document of the result, and the stages that it depends on, each after those that it takes."""
    unnamed = [document for document in documents if document.name is None]
    if len(unnamed) > 1:
        raise RecipeError(f"{len(unnamed)} stages have no name", "one, the result", "name the others")
    taken = {name for document in documents for name in _taken(document, named)}
    last = [name for name in named if name not in taken]
    if not unnamed and len(last) != 1:
        what = f"stages {', '.join(last)} are taken by no other" if last else "every stage is taken by another"
        raise RecipeError(what, "one result", "leave its name out")
    result = unnamed[0] if unnamed else named[last[0]]
    stages: dict[str, Document] = {}
    _collect(result, named, stages, ())
    return result, stages


def _collect(
    document: Document, named: Mapping[str, Document], found: dict[str, Document], path: tuple[str, ...]
) -> None:
    for name in _taken(document, named):
        if name in path or name == document.name:
            raise RecipeError(f"stage {name} takes itself", "stages that depend on others without a circle")
        if len(path) >= MAX_DEPTH:
            raise RecipeError(
                f"stage {path[0]} takes stages that take others, {len(path)} deep", f"{MAX_DEPTH} at most"
            )
        if name not in found:
            _collect(named[name], named, found, (*path, name))
            found[name] = named[name]


def _taken(document: Document, named: Mapping[str, object]) -> list[str]:
    """The stages that a document takes as models."""
    found = dict.fromkeys(reference.path for reference in document.references() if reference.path in named)
    for reference in document.references():
        if reference.path in found and reference != Reference(reference.path):
            raise RecipeError(f"stage {reference.path} has a revision or an adapter", "a stage, or a model with either")
    return list(found)


def _donor(document: Document) -> Reference:
    """What gives the configuration: the base model, else the first that is listed (mergekit: any)."""
    return document.base or document.slices[0].sources[0].model


def _first_model(document: Document, stages: Mapping[str, Document]) -> Reference:
    """The model that the configuration of the result comes from, through stages."""
    donor = _donor(document)
    return _first_model(stages[donor.path], stages) if donor.path in stages else donor


def _ignored(document: Document) -> list[str]:
    """Parameters that the method does not have, or not per model: mergekit passes them over, and so does evomerge.

    Raises:
        RecipeError: the method or the parameter is none of mergekit's, and the method does not have it.
    """
    spec = specs()[document.method]
    form = form_of(spec)
    each = {*form.per_input, *said_besides(spec, True)}
    shared = {*form.shared, *form.constants, "int8_mask", *said_besides(spec, False)}
    wide = [document.top, document.module, *(slice_.settings for slice_ in document.slices)]
    lines = []
    for settings, own in [
        *((settings, {*shared, *each}) for settings in wide),
        *((source.settings, {*each, "int8_mask"}) for s in document.slices for source in s.sources),
    ]:
        for name, setting in settings.items():
            if name not in own:
                why = "is not given for a model" if name in shared else f"is no parameter of {document.method}"
                if document.method not in FORMS or name not in PARAMETERS:
                    raise RecipeError(f"{setting.where} {why}", nearest(name, own - {"int8_mask"}))
                lines.append(f"{setting.where} {why}: ignored, as mergekit does")
    return lines


def _dtype(given: str | None, pool: Pool) -> Dtype:
    """The file's dtype, or that of the model which gives the configuration."""
    reference = pool.checkpoints[pool.info.config_from].config
    declared = given or reference.get("dtype") or reference.get("torch_dtype")
    return next((dtype for dtype in DTYPES if dtype == declared), pool.info.dtype)
