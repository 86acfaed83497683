"""Files that bring models to one vocabulary, read and written: what they say, and what cannot be said."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mergekit.config import MergeConfiguration
from mergekit_plan import filled
from vocabulary_files import FILES, HEAD, models

from evomerge.errors import EvomergeWarning, RecipeError
from evomerge.mergekit.reader import read_mergekit
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.tokenizer_spec import TokenizerSpec, TokenSource


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return models(tmp_path_factory.mktemp("vocabularies"))


def read(text: str, folders: dict[str, Path]) -> tuple[Recipe, Pool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvomergeWarning)
        file = read_mergekit(filled(text, folders))
        pool = open_pool(file.models, file.base, dtype=file.dtype, tokenizer=file.tokenizer)
        return file.recipe(pool), pool


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_means_what_was_read(name: str, folders: dict[str, Path]) -> None:
    recipe, pool = read(FILES[name], folders)
    written = yaml.safe_load(to_mergekit(recipe, pool.layout))
    given = MergeConfiguration.model_validate(yaml.safe_load(filled(FILES[name], folders)))
    again = MergeConfiguration.model_validate(written)
    assert again.base_model == given.base_model
    assert (again.tokenizer_source or again.tokenizer.source) == (
        given.base_model
        if "base" in (given.tokenizer_source, getattr(given.tokenizer, "source", None))
        else given.tokenizer_source or given.tokenizer.source
    )
    if given.tokenizer is not None:
        assert again.tokenizer is not None
        assert again.tokenizer.tokens == given.tokenizer.tokens
        assert again.tokenizer.pad_to_multiple_of == given.tokenizer.pad_to_multiple_of
    assert read(to_mergekit(recipe, pool.layout), folders)[0].hash == recipe.hash


def test_sources_of_tokens_are_read(folders: dict[str, Path]) -> None:
    recipe, _ = read(FILES["tokens"], folders)
    assert recipe.tokenizer == TokenizerSpec(
        "union",
        "base",
        (
            ("t5", TokenSource("model", "b", force=True)),
            ("<eos>", TokenSource("zero", force=True)),
            ("t7", TokenSource("model", "a", token="t9", force=True)),
            ("fresh", TokenSource("model", "a", id=3)),
            ("other", TokenSource("zero")),
            ("bonly", TokenSource("model", "b", token="bonly")),
        ),
        8,
    )


def test_rows_of_models_that_are_not_merged_there(folders: dict[str, Path]) -> None:
    """mergekit would fill rows from the slice's own models, and leave the tokens of others zero."""
    stacked = (
        "merge_method: passthrough\nslices:\n- sources: [{model: A, layer_range: [0, 1]}]\n"
        "- sources: [{model: B, layer_range: [1, 2]}]\n%s"
    )
    with pytest.raises(RecipeError, match="b is not merged into the embed, and its tokens are to be in the vocab"):
        read(stacked % "tokenizer_source: union\n", folders)
    with pytest.raises(RecipeError, match="c is not merged into the embed"):
        read(HEAD + "tokenizer_source: C\n", folders)


def test_what_mergekit_cannot_say(folders: dict[str, Path]) -> None:
    recipe, pool = read(FILES["union"], folders)
    spec = recipe.tokenizer
    assert spec is not None

    def refusal(**changes: object) -> str:
        with pytest.raises(RecipeError) as caught:
            to_mergekit(replace(recipe, tokenizer=replace(spec, **changes)), pool.layout)
        return str(caught.value)

    assert "the rows of 'a' for tokens that some models lack" in refusal(base="a")
    assert "the mean of the models' rows for token 't5'" in refusal(tokens=(("t5", TokenSource("mean")),))
    assert "aligned by their ids, with rows of padding" in refusal(source="aligned", base=None)
    without = replace(recipe, slices=read(FILES["union without a base"], folders)[0].slices)
    with pytest.raises(RecipeError, match=r"rows of model 'base', which is not merged in .*; .evomerge merge RUN"):
        to_mergekit(without, pool.layout)
