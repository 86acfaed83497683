"""Lineages: what `mergekit-multi` writes from the file of a merge of merges is what ``evomerge merge`` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mergekit_run import assert_close, run_mergekit
from safetensors.torch import load_file

from evomerge.cli.main import main
from evomerge.genomes.lineages import LineageGenome, LineageSpec
from evomerge.merge.methods import specs
from evomerge.models.opening import open_pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import dump_recipe
from search_spaces.lineage import LineageSpace

pytestmark = pytest.mark.slow

Llamas = Callable[..., dict[str, Path]]

CASES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "slerp, split between tensors": (torch.float32, {"chromosomes": [["attn"], ["mlp", "norm"]]}),
    "slerp, split between slices, rounded": (torch.bfloat16, {"split": "slice"}),
}


def third_generation(spec: LineageSpec) -> LineageGenome:
    """A child of two children, one of which is a parent of the other as well."""
    count = len(spec.chromosomes)
    first = spec.child(spec.seed("a"), spec.seed("b"), [0.3, 0.4] * count)
    second = spec.child(first, spec.seed("c"), [0.6, 0.75] * count)
    return spec.child(second, first, [0.45, 0.2] * count)


@pytest.fixture(scope="module")
def merged(llamas: Llamas, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Recipe, Path]]:
    """By case, the recipe and a folder with the models that both programs made: `ours` and `theirs`."""
    done, runs = {}, {}
    for number, (case, (dtype, options)) in enumerate(CASES.items()):
        pool = open_pool({name: str(folder) for name, folder in llamas(layers=3, dtype=dtype).items()}, "base")
        space = LineageSpace(pool.info, specs(), seeds=["a", "b", "c"], **options)
        recipe = space.decode(third_generation(space.spec))
        folder = tmp_path_factory.mktemp(f"lineage-{number}")
        (folder / "recipe.yaml").write_text(dump_recipe(recipe))
        assert main(["merge", str(folder / "recipe.yaml"), str(folder / "ours")]) == 0
        exported = ["export", str(folder / "recipe.yaml"), "--format", "mergekit", "-o", str(folder / "mergekit.yaml")]
        assert main(exported) == 0
        done[case] = recipe, folder
        runs[folder / "mergekit.yaml"] = folder / "theirs"
    run_mergekit(runs)
    return done


@pytest.mark.parametrize("case", CASES)
def test_the_file_has_a_stage_for_every_ancestor(merged: dict[str, tuple[Recipe, Path]], case: str) -> None:
    recipe, folder = merged[case]
    documents = list(yaml.safe_load_all((folder / "mergekit.yaml").read_text()))
    assert [document.get("name") for document in documents] == [*recipe.stages, None]
    assert len(recipe.stages) == 2
    assert {document["merge_method"] for document in documents} == {"slerp"}


@pytest.mark.parametrize("case", CASES)
def test_mergekit_writes_our_tensors(merged: dict[str, tuple[Recipe, Path]], case: str) -> None:
    dtype, _ = CASES[case]
    _, folder = merged[case]
    ours, theirs = (load_file(folder / which / "model.safetensors") for which in ("ours", "theirs"))
    assert set(ours) == set(theirs)
    differing = elements = 0
    for name, mine in ours.items():
        other = theirs[name]
        assert mine.dtype == other.dtype == dtype, name
        if dtype == torch.float32:
            assert_close(mine, other, name)
            continue
        # Stages are rounded: where one is at the edge between two numbers, what is made of it moves by one, or two.
        scale = float(mine.float().square().mean().sqrt())
        torch.testing.assert_close(mine, other, rtol=2**-7, atol=2**-8 * scale)
        differing += int((mine != other).sum())
        elements += mine.numel()
    assert differing <= 0.001 * elements


def test_the_result_is_no_seed_and_no_stage(merged: dict[str, tuple[Recipe, Path]]) -> None:
    """A comparison that could not fail would compare copies."""
    recipe, folder = merged["slerp, split between tensors"]
    name = "model.layers.1.mlp.down_proj.weight"
    mine = load_file(folder / "ours" / "model.safetensors")[name]
    for stage in recipe.stages:
        other = load_file(folder / "theirs-stages" / stage / "model.safetensors")[name]
        assert float((mine - other).norm() / mine.norm()) > 0.05
