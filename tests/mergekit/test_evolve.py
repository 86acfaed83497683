"""mergekit-evolve configurations become experiments whose genomes mean the same merges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mergekit.evo.config import EvolMergeConfiguration
from mergekit.evo.genome import ModelGenome

from evomerge.errors import EvomergeError
from evomerge.merge.methods import specs
from evomerge.mergekit.experiment import experiment_from_evolve
from evomerge.mergekit.reader import read_mergekit
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceRecipe
from search_spaces.parameter import ParameterSpace

TASKS: dict[str, Any] = {"tasks": ["arc_easy"]}
LAYERS = 6


@pytest.fixture(scope="module")
def folders(llamas: Callable[..., dict[str, Path]]) -> dict[str, str]:
    return {name: str(folder) for name, folder in llamas(layers=LAYERS).items()}


def written(tmp_path: Path, content: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The experiment of a configuration: its keys, and the comment."""
    file = tmp_path / "evolve.yml"
    file.write_text(yaml.safe_dump(content))
    text = experiment_from_evolve(file, "found")
    return yaml.safe_load(text), "\n".join(line for line in text.splitlines() if line.startswith("#"))


def space_of(experiment: dict[str, Any]) -> tuple[ParameterSpace, Pool]:
    pool = open_pool(experiment["pool"]["models"], experiment["pool"]["base"], dtype=experiment["pool"]["dtype"])
    return ParameterSpace(pool.info, specs(), **experiment["search_space"]), pool


def theirs(content: dict[str, Any], genotype: np.ndarray, pool: Pool) -> Recipe:
    """The merge that mergekit-evolve makes of a genotype, as we read it."""
    genome = ModelGenome(EvolMergeConfiguration.model_validate(content).genome)
    return read_mergekit(genome.genotype_merge_config(genotype).to_yaml()).recipe(pool)


def value(entry: SliceRecipe, model: str, name: str) -> float:
    return float(dict(next(i for i in entry.inputs if i.model == model).parameters)[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties"])
@pytest.mark.parametrize("filters", [None, ["self_attn", "mlp", "embed"], ["layernorm", "model.norm", "proj"]])
@pytest.mark.parametrize("granularity", [0, 2, 1])
def test_a_genome_means_the_same_merge(
    folders: dict[str, str], tmp_path: Path, method: str, filters: list[str] | None, granularity: int
) -> None:
    based = method != "linear"
    content = {
        "genome": {
            "models": [folders["a"], folders["b"], folders["c"]],
            "merge_method": method,
            "base_model": folders["base"] if based else None,
            "layer_granularity": granularity,
            "filters": filters,
        },
        **TASKS,
    }
    space, pool = space_of(written(tmp_path, content)[0])
    mine = space.decode(space.spec.sample(np.random.default_rng(0)))
    entries = {str(entry.slice): entry for entry in mine.slices}
    # The genes of layers, read off our recipe, as mergekit-evolve lines them up.
    components = {None: "norm", "self_attn": "attn", "mlp": "mlp", "layernorm": "norm", "proj": "attn"}
    sets = [*(filters or []), None]
    step = granularity or LAYERS
    names = ("weight",) if method in ("linear", "task_arithmetic") else ("weight", "density")

    def gene(group: int, model: str, part: str | None, name: str) -> float:
        outside = {"embed": "embed", "model.norm": "final_norm"}.get(part or "")
        if outside is None and part is None and filters and "proj" in filters:
            outside = "embed"  # what no filter takes: embeddings and head
        slice_ = outside or f"layers.{group * step}.{components[part]}"
        return value(entries[slice_], model, name)

    genotype = np.array(
        [[[[gene(g, m, f, n) for n in names] for f in sets] for m in "abc"] for g in range(LAYERS // step)]
    )
    read = theirs(content, genotype.reshape(-1), pool)
    if granularity == 0:
        assert read.hash == mine.hash
    else:  # embeddings, final norm and head have genes of their own here
        inner = [[entry for entry in recipe.slices if entry.slice.layer is not None] for recipe in (read, mine)]
        assert inner[0] == inner[1]
        assert read.dtype == mine.dtype
        assert read.config_from == mine.config_from


def test_smooth_genomes_are_interpolated_alike(folders: dict[str, str], tmp_path: Path) -> None:
    content = {
        "genome": {
            "models": [folders["a"], folders["b"]],
            "merge_method": "task_arithmetic",
            "base_model": folders["base"],
            "layer_granularity": 2,
            "smooth": True,
        },
        **TASKS,
    }
    experiment, _ = written(tmp_path, content)
    assert experiment["search_space"]["anchors"] == 3
    space, pool = space_of(experiment)
    mine = space.decode(space.spec.sample(np.random.default_rng(0)))
    named = space.spec.named(space.spec.sample(np.random.default_rng(0)))
    anchors = [[v for k, v in named.items() if k.startswith("layers") and f"/{m}/" in k] for m in "ab"]
    genotype = np.array(anchors).T.reshape(3, 2, 1, 1)
    read = theirs(content, genotype, pool)
    for one, other in zip(mine.slices, read.slices, strict=True):
        if one.slice.layer is not None:
            assert [value(one, m, "weight") for m in "ab"] == pytest.approx(
                [value(other, m, "weight") for m in "ab"], rel=1e-12
            )


def test_slerp_reaches_the_same_merges(folders: dict[str, str], tmp_path: Path) -> None:
    content = {"genome": {"models": [folders["a"], folders["b"]], "merge_method": "slerp"}, **TASKS}
    experiment, _ = written(tmp_path, content)
    space, pool = space_of(experiment)
    mine = space.decode(space.spec.genome([0.25]))
    # Their t is a softmax: here of the second model's gene.
    read = theirs(content, np.array([np.log(3.0), 0.0]), pool)
    assert dict(mine.slices[0].parameters)["t"] == pytest.approx(dict(read.slices[0].parameters)["t"])
    assert [i.model for i in mine.slices[0].inputs] == [i.model for i in read.slices[0].inputs]


def test_the_whole_experiment(folders: dict[str, str], tmp_path: Path) -> None:
    content = {
        "genome": {
            "models": [folders["a"], folders["base"]],
            "merge_method": "dare_ties",
            "base_model": folders["base"],
            "tokenizer_source": "union",
            "allow_negative_weights": True,
            "normalize": False,
        },
        "tasks": [
            "arc_easy",
            {"name": "gsm8k", "weight": 0.5, "metric": "exact_match,strict-match"},
            {"name": "wikitext", "weight": -0.1, "metric": "word_perplexity,none"},
            {"name": "arc_easy", "weight": 2, "metric": "acc_norm,none"},
        ],
        "limit": 50,
        "num_fewshot": 3,
        "shuffle": True,
        "random_init": True,
        "apply_chat_template": False,
    }
    experiment, comment = written(tmp_path, content)
    assert experiment == {
        "defaults": [
            {"override /pool": "custom"},
            {"override /search_space": "parameter"},
            {"override /strategy": "cma_es"},
            {"override /fitness": "lm_eval"},
        ],
        "name": "found-${now:%Y-%m-%d_%H-%M-%S}",
        "pool": {
            "models": {"base": folders["base"], "a": folders["a"]},
            "base": "base",
            "dtype": "bfloat16",
            "tokenizer": "union",
        },
        "search": {"evaluations": 100},
        "search_space": {
            "method": "dare_ties",
            "layer_group": "all",
            "components": [["attn", "mlp", "norm", "embed", "final_norm", "head"]],
            "parameters": {
                "weight": {"high": 1.0, "initial": 0.5},
                "density": {"low": 0.0, "high": 1.0, "initial": 1.0},
                "rescale_by": "magnitude",
            },
            "normalize": False,
            "negative_weights": True,
        },
        "strategy": {"sigma0": 1 / 12},
        "fitness": {
            "tasks": [
                {"task": "arc_easy", "metrics": {"acc": 1.0, "acc_norm": 2.0}},
                {"task": "gsm8k", "metrics": {"exact_match,strict-match": 0.5}},
                {"task": "wikitext", "metrics": {"word_perplexity": 0.1}},
            ],
            "limit": 50,
            "num_fewshot": 3,
            "apply_chat_template": False,
            "fewshot_as_multiturn": True,
        },
    }
    assert comment.startswith("# @package _global_\n# The search of evolve.yml")
    for said in ("not shuffled", "not at random", "its weight changes nothing", "other masks"):
        assert said in comment


GENOME = {"models": ["A", "B"], "merge_method": "ties", "base_model": "BASE"}
REFUSED = {
    "a merge": ({"merge_method": "linear", "models": []}, "this is a merge, not a search"),
    "no genome": (TASKS, "genome is missing"),
    "a typo": ({"genome": {**GENOME, "smoth": True}}, r"unknown key genome\.smoth; did you mean 'smooth'"),
    "another typo": ({"genome": GENOME, "limt": 3}, "unknown key limt; did you mean 'limit'"),
    "a typo in a task": ({"genome": GENOME, "tasks": [{"nam": "x"}]}, r"unknown key tasks\[0\]\.nam"),
    "a method": ({"genome": {**GENOME, "merge_method": "della"}}, r"genome\.merge_method is 'della'; one of"),
    "no base": ({"genome": {"models": ["A"], "merge_method": "ties"}}, r"genome\.base_model is missing; ties needs"),
    "a base alone": ({"genome": {**GENOME, "models": ["BASE"]}}, "has the base only"),
    "a model twice": ({"genome": {**GENOME, "models": ["A", "A"]}}, r"genome\.models\[1\] is .* a second time"),
    "a third base": ({"genome": {**GENOME, "merge_method": "linear"}}, "linear has no use for another"),
    "slerp of three": ({"genome": {"models": ["A", "B", "C"], "merge_method": "slerp"}}, "slerp takes two"),
    "smooth slerp": ({"genome": {"models": ["A", "B"], "merge_method": "slerp", "smooth": True}}, "slerp has none"),
    "negative": ({"genome": {**GENOME, "allow_negative_weights": True}}, "weights that may cancel cannot be divided"),
    "granularity": ({"genome": {**GENOME, "layer_granularity": 4, "smooth": True}}, "is 4 and the models have 6 lay"),
    "half a component": (
        {"genome": {**GENOME, "filters": ["q_proj"]}},
        r"genome\.filters tell .*k_proj\.weight from .*q_proj\.weight, both of component attn; evomerge's genes are by",
    ),
    "layers": ({"genome": {**GENOME, "filters": ["layers.1."]}}, r"tell .*layers\.1\..* from .*layers\.0\."),
    "a flag": ({"genome": {**GENOME, "smooth": 1}}, r"genome\.smooth is 1; true or false"),
    "a model that is not there": ({"genome": {**GENOME, "models": ["/none"], "filters": ["mlp"]}}, "no folder /none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused(folders: dict[str, str], tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    text = yaml.safe_dump({**TASKS, **content})
    for model, folder in folders.items():
        text = text.replace(f"- {model.upper()}\n", f"- {folder}\n").replace(f": {model.upper()}\n", f": {folder}\n")
    file = tmp_path / "evolve.yml"
    file.write_text(text)
    with pytest.raises(EvomergeError, match=message) as raised:
        experiment_from_evolve(file, "found")
    assert "\n" not in str(raised.value)
