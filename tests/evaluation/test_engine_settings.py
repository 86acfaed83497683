"""What is said of an engine before it is started; none of it needs vLLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

from evomerge.candidate import Split
from evomerge.errors import ConfigError, RecipeError
from evomerge.evaluation import vllm_memory
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.local import LocalEvaluator
from evomerge.evaluation.reference_scores import draw_prompts, fitting_layers
from evomerge.evaluation.vllm_groups import require_whole_groups
from evomerge.evaluation.vllm_memory import divided, engine_memory
from evomerge.evaluation.vllm_paths import FixedLayers
from evomerge.evaluation.vllm_source import check_heads
from evomerge.merge.planning.plan import make_plan
from evomerge.models.memory import device_lost, lost
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe

GROUPS = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
KNOWN = [
    f"model.layers.{layer}.{part}.{kind}"
    for layer in (0, 1)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    for kind in ("weight", "bias")
    if kind == "weight" or "self_attn" in part
]


@pytest.mark.parametrize(
    ("engine", "arguments", "words"),
    [
        ("vlm", {}, "evaluator.engine is 'vlm'; did you mean 'vllm'"),
        ("transformers", {"max_model_len": 8}, "transformers takes none"),
        ("vllm", {"model": "x"}, "evaluator.engine_args has model; the pool gives it"),
        ("vllm", {"dtype": "half"}, "set pool.dtype"),
        ("vllm", {"tensor_parallel_size": 2}, "gpus_per_worker=2"),
        ("vllm", {"data_parallel_size": 2}, "evaluator.workers=2"),
    ],
)
def test_refuses_what_no_engine_can_be_given(engine: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as found:
        LocalEvaluator(lambda **_: None, engine=engine, engine_args=arguments)  # type: ignore[arg-type,return-value]
    assert words in str(found.value)


def test_reads_an_evaluators_node() -> None:
    assert EngineSettings.of({"device": "cpu"}) == EngineSettings()
    assert EngineSettings.of(None) == EngineSettings()
    node = {"engine": "vllm", "engine_args": {"max_model_len": 64}}
    assert EngineSettings.of(node) == EngineSettings("vllm", {"max_model_len": 64})
    node = {"engine": "vllm", "engine_args": "max_model_len=64, enforce_eager=true"}
    assert EngineSettings.of(node).arguments == {"max_model_len": 64, "enforce_eager": True}
    with pytest.raises(ConfigError, match=r"'max_model_len' has none; for example evaluator.engine_args='{max_model"):
        EngineSettings.of({"engine": "vllm", "engine_args": "max_model_len"})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quantise": "int4"}, "evaluator.quantise is 'int4'; did you mean 'int8'"),
        ({"quantise": "nf4", "engine": "vllm"}, "vLLM packs quantised weights when it loads them"),
        ({"quantise": "int8", "device": "spread"}, "a quantised model lies on one"),
        ({"quantise": "int8", "gpus_per_worker": 2}, "set evaluator.device=auto and evaluator.gpus_per_worker=1"),
        ({"quantise_held_out": True}, "evaluator.quantise_held_out is true and evaluator.quantise is null"),
    ],
)
def test_refuses_what_cannot_be_quantised(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as found:
        EngineSettings.of(given)
    assert words in str(found.value)


def test_says_which_items_are_scored_with_quantised_weights() -> None:
    splits: tuple[Split, ...] = ("search", "validation", "held_out")
    assert [EngineSettings.of({"quantise": "int8"}).quantises(split) for split in splits] == [True, False, False]
    assert EngineSettings.of({}).event == {}
    assert EngineSettings.of({"engine": "vllm"}).event == {"engine": "vllm"}
    everywhere = EngineSettings.of({"quantise": "nf4", "quantise_held_out": True})
    assert all(everywhere.quantises(split) for split in splits)
    assert everywhere.in_full == EngineSettings()
    assert EngineSettings().event == {}


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"vLLM is not installed.*pip install 'evomerge\[vllm\]'"):
        EngineSettings("vllm").require_installed()
    with pytest.raises(ConfigError, match=r"bitsandbytes is not installed.*evomerge\[quantise\].*quantise=int8"):
        EngineSettings(quantise="nf4").require_installed()
    EngineSettings(quantise="int8").require_installed()
    EngineSettings().require_installed()


@pytest.fixture
def vllm_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of vLLM's name, with the two places that are read; importing it fails."""
    folder = tmp_path / "vllm"
    files = {
        "__init__.py": "raise RuntimeError",
        "engine/arg_utils.py": "class Other:\n    nope: int = 1\n\nclass EngineArgs:\n    model: str = 'm'\n"
        "    max_model_len: int | None = None\n    max_num_seqs: int = 1\n    known = 3\n"
        "    enforce_eager: bool = False\n    watermark: float = 0.0\n    block: Kind | int = 3\n",
        "v1/attention/backends/cpu_attn.py": "class A:\n    @classmethod\n    def get_supported_head_sizes(cls):\n"
        "        return [32, 64, 80]\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    spec = importlib.util.spec_from_file_location(
        "vllm", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "vllm" else None)
    return folder


def test_names_every_argument_that_vllm_has_not(vllm_source: Path) -> None:
    EngineSettings("vllm", {"max_model_len": 64, "chat_template": "x"}).require_installed()
    given = EngineSettings("vllm", {"max_model_length": 64, "max_num_seqs": 2, "max_num_seq": 2})
    with pytest.raises(ConfigError) as found:
        given.require_installed()
    assert found.value.given == "evaluator.engine_args has 'max_model_length', 'max_num_seq'"
    assert "did you mean 'max_model_len'?" in found.value.allowed
    assert "did you mean 'max_num_seqs'?" in found.value.allowed
    (vllm_source / "engine/arg_utils.py").unlink()  # a vLLM whose source is another says it itself
    given.require_installed()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_model_len", "many", "a whole number"),
        ("max_model_len", 64.5, "a whole number"),
        ("max_num_seqs", True, "a whole number"),
        ("max_num_seqs", 0, "a whole number, 1 or more"),
        ("enforce_eager", 1, "true or false"),
        ("watermark", "x", "a number"),
    ],
)
def test_values_of_plain_kinds_are_checked(vllm_source: Path, name: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError) as found:
        EngineSettings("vllm", {name: value}).require_installed()
    assert (found.value.given, found.value.allowed) == (f"evaluator.engine_args.{name} is {value!r}", allowed)


def test_values_that_vllm_takes_are_taken(vllm_source: Path) -> None:
    good = {"max_model_len": None, "max_num_seqs": 3, "enforce_eager": False, "watermark": 1, "block": "x"}
    EngineSettings("vllm", good).require_installed()
    EngineSettings("vllm", {"max_model_len": -1}).require_installed()  # as long as there is memory for


def test_heads_that_vllm_takes_on_a_processor(vllm_source: Path) -> None:
    def config(**given: int) -> LlamaConfig:
        return LlamaConfig(hidden_size=96, num_attention_heads=4, **given)

    check_heads(config(head_dim=64), "a")
    with pytest.raises(ConfigError, match=r"heads of a are 24 wide; heads of 32, 64, 80; set evaluator.engine=transf"):
        check_heads(config(), "a")
    (vllm_source / "v1/attention/backends/cpu_attn.py").write_text("def get_supported_head_sizes():\n    return f()\n")
    check_heads(config(), "a")


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["self_attn.q_proj.weight"], "self_attn.k_proj.weight"),
        ([f"self_attn.{p}_proj.weight" for p in "qkv"] + ["self_attn.q_proj.bias"], "self_attn.k_proj.bias"),
        (["mlp.up_proj.weight"], "mlp.gate_proj.weight"),
    ],
)
def test_a_fused_group_is_given_whole(given: list[str], missing: str) -> None:
    names = [f"model.layers.1.{name}" for name in given]
    with pytest.raises(RecipeError, match=f"without 'model.layers.1.{missing}'"):
        require_whole_groups(names, GROUPS, KNOWN)


def test_whole_groups_of_some_layers_will_do() -> None:
    names = [name for name in KNOWN if ".1." in name and "self_attn" in name]
    require_whole_groups([*names, "model.norm.weight"], GROUPS, KNOWN)
    # Of a layer that shares the keys and values of another, these are not in the checkpoint.
    require_whole_groups(["model.layers.7.self_attn.q_proj.weight"], GROUPS, KNOWN)


def test_memory_of_a_gpu_is_divided_among_those_who_share_it() -> None:
    gib = 1 << 30
    sizes = {"weights": 10 * gib, "sources": 40 * gib, "layer": gib}
    alone = divided(80 * gib, **sizes, host=64 * gib, cache=CacheSettings())
    shared = divided(80 * gib, **sizes, host=32 * gib, cache=CacheSettings(workers=2, sharing=2))
    assert alone.placement is not None
    assert shared.placement is not None
    # 76 of 80 GiB; 4 for what is merged, 15.5 of the 62 that are left for sources.
    assert alone.placement.device == int(62 * gib * 0.25)
    assert alone.arguments == {"gpu_memory_utilization": round((76 - 4 - 15.5) / 80, 3)}
    assert 2 * shared.arguments["gpu_memory_utilization"] < 1
    assert shared.placement.device < alone.placement.device
    pretended = divided(80 * gib, **sizes, host=64 * gib, cache=CacheSettings(gpu=24 * gib))
    assert pretended.arguments["gpu_memory_utilization"] < 24 / 80


def test_a_dead_engine_is_a_dead_worker() -> None:
    dead = type("EngineDeadError", (Exception,), {})("EngineCore encountered an issue")
    assert device_lost(dead)
    assert "the engine on it failed" in str(lost(dead))


@pytest.fixture
def pool(tiny_model: Any) -> Pool:
    return open_pool({name: str(tiny_model(name, "gemma2", seed)) for seed, name in enumerate(("a", "b"))})


def path(pool: Pool, layers: list[tuple[str, int]]) -> Recipe:
    parts = [s.component for s in pool.info.slices if s.layer == 0]
    outer = [SliceRecipe(s, "passthrough", (Input("a"),)) for s in pool.info.slices if s.layer is None]
    inner = [
        SliceRecipe(SliceId(part, place), "passthrough", (Input(model, layer),))
        for place, (model, layer) in enumerate(layers)
        for part in parts
    ]
    return pool.info.recipe(sorted([*outer, *inner], key=lambda s: s.slice.order))


def test_an_engine_holds_paths_of_its_own_length_and_kinds(pool: Pool) -> None:
    layers = FixedLayers(pool)
    assert layers.refusal(make_plan(pool.info.linear({"b": 1.0}), pool)) == ""
    assert layers.refusal(make_plan(path(pool, [("b", 0), ("a", 1)]), pool)) == ""
    longer = layers.refusal(make_plan(path(pool, [("a", 0), ("a", 1), ("b", 1)]), pool))
    assert longer == "the candidate has 3 layers, and the engine was started with 2"
    turned = layers.refusal(make_plan(path(pool, [("a", 1), ("a", 0)]), pool))
    assert turned == (
        "layer 1 of a is in place 0, where the engine has a layer of another kind (layer_types full_attention)"
    )


def test_of_a_model_larger_than_the_memory_the_first_layers_are_compared(pool: Pool) -> None:
    sizes = dict(zip(pool.info.slices, pool.info.sizes, strict=True))
    outer = 4 * sum(size for s, size in sizes.items() if s.layer is None)
    layer = 4 * sum(size for s, size in sizes.items() if s.layer == 0)
    assert fitting_layers(pool, 2 * (outer + 2 * layer)) == 2
    assert fitting_layers(pool, 2 * (outer + layer)) == 1
    assert fitting_layers(pool, 0) == 1


def test_prompts_share_beginnings_and_fit_into_the_engine(pool: Pool) -> None:
    prompts = draw_prompts(pool, 32)
    assert prompts == draw_prompts(pool, 32)
    assert {len(prompt) for prompt in prompts} <= set(range(4, 31))
    assert len(prompts) == 12
    assert prompts[-2][:10] == prompts[-1][:10]
    assert all(0 <= token < 40 for prompt in prompts for token in prompt)


def test_a_group_counts_by_its_smallest_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    slices = [SimpleNamespace(layer=number) for number in range(8)]
    info = SimpleNamespace(sizes=[gib // 2] * 8, slices=slices, dtype="bfloat16")
    pool: Any = SimpleNamespace(info=info, nbytes=24 * gib)
    monkeypatch.setattr(vllm_memory, "free_host_memory", lambda: 64 * gib)
    found = engine_memory(pool, CacheSettings(group=(80 * gib, 48 * gib)), 2)
    # weights and sources of each process: half of the weights, all of the sources
    assert found == divided(48 * gib, 4 * gib, 24 * gib, 3 * gib, 64 * gib, CacheSettings())
    assert found.arguments["gpu_memory_utilization"] > 0.5
    with pytest.raises(ConfigError, match="GPUs that torch cannot use on their node"):
        engine_memory(pool, CacheSettings(group=(80 * gib, 0)), 2)
