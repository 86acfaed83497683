"""The files beside the weights of a merged model: copied from the source models, their differences said."""

from __future__ import annotations

import json
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeWarning
from evomerge.models.architecture.dense_layers import FILE, merged_layers
from evomerge.models.checkpoints.sentence_modules import check_sentence_modules, sentence_files
from evomerge.models.checkpoints.side_files import CODE, INPUT_FOLDERS, INPUTS, SENTENCE, check_inside, matching
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe

GENERATION = "generation_config.json"
_PREPARE = ("*preprocessor_config.json", "processor_config.json")
# What is compared; vocabularies were when the pool was opened.
_COMPARED = (
    "chat_template*",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "*preprocessor_config.json",
    "processor_config.json",
    *SENTENCE,
)
# Of these a model may have none although another has one, and what is left out is said.
_ALONE = tuple(pattern for pattern in _COMPARED if not pattern.startswith(("tokenizer", "special")))
# What changes from one save to the next.
_VOLATILE = (
    "transformers_version",
    "_from_model_config",
    "name_or_path",
    "_name_or_path",
    "tokenizer_file",
    "__version__",
)


def files_to_copy(recipe: Recipe, pool: Pool) -> dict[Path, Path]:
    """Files by their name in the result.

    Generation configuration and code are those of `recipe.config_from`; the tokenizer, or what else prepares inputs,
    and its code those of `recipe.tokenizer_from`; the settings of sentence-transformers those of the first model that
    has any. Warns of files that differ between the models, and of those that are left out.

    Raises:
        PoolError: a file lies outside its model's folder, or a module of sentence-transformers has weights of its own.
    """
    folders = {recipe.config_from: pool.folder(recipe.config_from)}
    folders |= {name: pool.folder(name) for name, _ in recipe.models}
    giver = _giver(recipe, pool)
    inputs = inputs_folder(recipe, pool)
    folders.setdefault(giver, pool.folder(giver))
    files = [*matching(inputs, (*INPUTS, CODE)), *(f for n in INPUT_FOLDERS for f in sorted((inputs / n).glob("*")))]
    found = {file.relative_to(inputs): (giver, file) for file in files}
    if inputs != folders[giver]:  # a tokenizer that no model has: what else prepares inputs is still the giver's
        found |= {Path(file.name): (giver, file) for file in matching(folders[giver], (*_PREPARE, CODE))}
    source = folders[recipe.config_from]
    found |= {Path(f.name): (recipe.config_from, f) for f in matching(source, ("generation_config.json", CODE))}
    found = {place: (name, file) for place, (name, file) in found.items() if file.is_file()}
    check_sentence_modules(folders, but_dense=recipe.dense is not None)
    encoder = pool.encoder_from
    if encoder is not None:
        found |= {place: (encoder, file) for place, file in sentence_files(pool.folder(encoder)).items()}
        folders.setdefault(encoder, pool.folder(encoder))
        for layer in merged_layers(pool.config):  # whose weights are written anew
            found.pop(Path(layer.place) / FILE, None)
    for name, file in found.values():
        check_inside(file, folders[name] if inputs not in file.parents else inputs)
    _warn_of_differences(found, folders)
    return {place: file for place, (_, file) in found.items()}


def _giver(recipe: Recipe, pool: Pool) -> str:
    """The model whose tokenizer the result has, or begins with."""
    if pool.vocabulary is not None:
        return pool.vocabulary.giver
    return recipe.tokenizer_from or recipe.config_from


def inputs_folder(recipe: Recipe, pool: Pool) -> Path:
    """Where the tokenizer of the result lies."""
    return pool.folder(_giver(recipe, pool)) if pool.vocabulary is None else pool.vocabulary.folder


def _warn_of_differences(found: dict[Path, tuple[str, Path]], folders: dict[str, Path]) -> None:
    """Name the files that another model has otherwise, and those that only others have."""
    differing: dict[str, list[str]] = {}
    alone: dict[str, list[str]] = {}
    for name, folder in folders.items():
        for place, (giver, file) in found.items():
            is_compared = len(place.parts) > 1 or any(fnmatch(place.name, pattern) for pattern in _COMPARED)
            other = folder / place
            if name != giver and is_compared and other.is_file() and _content(other) != _content(file):
                differing.setdefault(f"{place} (of {giver})", []).append(name)
        for file in matching(folder, _ALONE):
            if Path(file.name) not in found and file.is_file():
                alone.setdefault(file.name, []).append(name)
    if differing:
        listed = ", ".join(f"{place} than in {' and '.join(names)}" for place, names in sorted(differing.items()))
        warnings.warn(
            f"the merged model takes one of files that differ between the models: {listed}",
            EvomergeWarning,
            stacklevel=3,
        )
    if alone:
        listed = ", ".join(f"{place} (in {' and '.join(names)})" for place, names in sorted(alone.items()))
        warnings.warn(
            f"the merged model has none of files that only some models have: {listed}", EvomergeWarning, stacklevel=3
        )


def _content(file: Path) -> Any:
    """What a file says: of JSON, without what changes from one save to the next."""
    data = file.read_bytes()
    if file.suffix != ".json":
        return data
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return data
    return {k: v for k, v in content.items() if k not in _VOLATILE} if isinstance(content, dict) else content
