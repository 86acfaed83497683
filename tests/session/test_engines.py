"""Searches that ask an engine for what it cannot do end before anything is started."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from lora_server import save_adapters
from tiny_llama import save_llama

from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError, EvomergeError
from evomerge.run.folder import RunFolder
from evomerge.session import engines
from evomerge.session.builders import fitness_from_config
from evomerge.session.parts import build_parts

VLLM = "evaluator.engine=vllm"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM, as far as anyone looks for it."""
    monkeypatch.setattr(engines.EngineSettings, "require_installed", lambda self: None)


def words(tiny_model: Any, *more: str) -> list[str]:
    models = ",".join(f"{name}:{tiny_model(name, seed=seed)}" for seed, name in enumerate("ab"))
    tasks = "fitness.tasks=[{task: {task: t, dataset_path: json, output_type: loglikelihood}}]"
    return [f"pool.models={{{models}}}", "fitness=lm_eval", tasks, "strategy=random", VLLM, *more]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["fitness.forwards=shared"], "forwards is shared and evaluator.engine is vllm"),
        (["fitness.generation=continuous"], "generation is continuous and evaluator.engine is vllm"),
        (["fitness.mixed_precision_dtype=bfloat16"], "set pool.dtype"),
        (["fitness.softmax_dtype=model"], "vLLM takes it in float32"),
        (["fitness.think_end_token=7"], "the token's text"),
        (["fitness.truncation=true"], "set max_length"),
    ],
)
def test_what_lm_evals_vllm_has_no_argument_for(more: list[str], said: str) -> None:
    config = compose_config(["fitness=lm_eval", "fitness.tasks=[t]", VLLM, *more])
    with pytest.raises(EvomergeError) as found:
        fitness_from_config(config, "fitness", files=False)
    assert said in str(found.value)
    assert "fitness." in str(found.value)


def test_auto_is_what_stock_lm_eval_does() -> None:
    config = compose_config(["fitness=lm_eval", "fitness.tasks=[t]", VLLM])
    fitness: Any = fitness_from_config(config, "fitness", files=False)
    assert (fitness._forwards.mode, fitness._forwards.generation) == ("exact", "stock")


def test_a_fitness_of_modules_is_refused() -> None:
    config = compose_config(["experiment=m2n2_digits", "evaluator=local", VLLM])
    with pytest.raises(ConfigError, match=r"fitness is DigitsFitness.*a fitness that asks for log-likelihoods"):
        fitness_from_config(config, "fitness", files=False)


def test_vllm_that_is_not_installed_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = compose_config(["pool.models={a:/nowhere}", "fitness=lm_eval", "fitness.tasks=[t]", VLLM])
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        build_parts(config)


@pytest.mark.usefixtures("installed")
def test_a_space_of_paths_of_other_lengths_is_refused(tiny_model: Any) -> None:
    config = compose_config(words(tiny_model, "search_space=data_flow"))
    with pytest.raises(ConfigError) as found:
        build_parts(config)
    assert "search_space describes models that it cannot hold: the candidate has" in str(found.value)
    assert "the engine was started with 2" in str(found.value)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words of a search over two adapters of a base, which vLLM scores."""
    root = tmp_path_factory.mktemp("adapted")
    save_llama(root / "base", 0, layers=2)
    save_adapters(root / "base", root)
    models = ", ".join(["base: " + str(root / "base"), *(f"{n}: {root / 'base'}+{root / n}" for n in "ab")])
    file = root / "rows.jsonl"
    file.write_text('{"q": "t1 t2", "a": "t3"}\n' * 16)
    task = (
        f"{{task: t, dataset_path: json, dataset_kwargs: {{data_files: {{test: {file}}}}}, test_split: test, "
        "output_type: loglikelihood, doc_to_text: '{{q}}', doc_to_target: '{{a}}', metric_list: [{metric: acc}]}"
    )
    return [f"pool.models={{{models}}}", "pool.base=base", "fitness=lm_eval", f"fitness.tasks=[{{task: {task}}}]", VLLM]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("more", "slots", "said"),
    [
        (["search_space=task_arithmetic"], 8, "as adapters of rank 8 at most, 8 at once"),
        (["search_space=task_arithmetic", "evaluator.adapters_at_once=3"], 3, "3 at once"),
        (["search_space=task_arithmetic", "evaluator.adapters_at_once=0"], 1, "evaluator.adapters_at_once is 0"),
        (["search_space=ties"], 1, "search_space describes models that are no adapters: tensor"),
        (
            ["search_space=task_arithmetic", "evaluator.engine_args={max_lora_rank: 1}"],
            1,
            "has rank 5 and the engine takes adapters of rank 1 at most",
        ),
    ],
)
def test_which_way_candidates_go_to_vllm(adapted: list[str], more: list[str], slots: int, said: str) -> None:
    from evomerge.evaluation.worker_builder import workers_of

    few = ["strategy=cma_es", "evaluator.device=auto", "fitness.limit=15"]
    parts = build_parts(compose_config([*adapted, *few, *more]))
    assert said in str(parts.adapters)
    assert str(parts.adapters).startswith("merged slice by slice, one at a time: ") is (slots == 1)
    evaluator: Any = parts.evaluator
    assert (evaluator.slots, evaluator.together, workers_of(evaluator)) == (slots, slots, 1)
    assert evaluator._build.engine.adapters == (slots if slots > 1 else 0)


@pytest.mark.usefixtures("installed")
def test_workers_of_a_cluster_are_told_which_way(adapted: list[str]) -> None:
    for space, at_once in (("task_arithmetic", 8), ("ties", 0)):
        words = [*adapted, "strategy=cma_es", f"search_space={space}", "evaluator=ray", VLLM, "evaluator.workers=2"]
        words.append("fitness.limit=15")
        evaluator: Any = build_parts(compose_config(words)).evaluator
        assert evaluator.slots == 2 * max(1, at_once)
        assert evaluator._build.build.args[0]["evaluator"]["adapters_at_once"] == at_once


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("more", "at_once", "kept"),
    [
        ([], 0, 0),
        (["evaluator.adapters_at_once=8"], 8, 8),
        (["evaluator.gpu=24GB"], 8, None),  # counted for a GPU
        (["evaluator=ray", "evaluator.gpus_per_worker=0"], 0, 0),
        (["evaluator=ray", "evaluator.address=auto"], 8, None),  # whose nodes may have GPUs
    ],
)
def test_many_prompts_on_a_processor_are_for_merged_weights(
    adapted: list[str], more: list[str], at_once: int, kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config: Any = compose_config([*adapted, "strategy=cma_es", "search_space=task_arithmetic", *more, VLLM])
    parts = build_parts(config)
    assert parts.adapters is not None
    assert (parts.adapters.at_once, config.evaluator.adapters_at_once) == (at_once, kept)
    assert ("busy with the 16 prompts of one" in str(parts.adapters)) is (at_once == 0)


@pytest.mark.usefixtures("installed")
def test_a_run_that_left_it_open_before_goes_on_with_eight(adapted: list[str], tmp_path: Path) -> None:
    config: Any = compose_config([*adapted, "strategy=cma_es", "search_space=task_arithmetic", "evaluator.device=auto"])
    parts = build_parts(config, RunFolder(tmp_path))
    assert parts.adapters is not None
    assert (parts.adapters.at_once, config.evaluator.adapters_at_once) == (8, None)


def test_a_run_of_before_has_no_such_key_and_goes_on_as_it_was() -> None:
    node = {"engine": "vllm"}
    assert engines.EngineSettings.of(node).adapters == 0
    assert engines.EngineSettings.of({**node, "adapters_at_once": 5}).adapters == 5
    assert engines.EngineSettings.of({**node, "adapters_at_once": None}).adapters == 8
    assert engines.EngineSettings.of({"adapters_at_once": None}).adapters == 0


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"engine": "vllm", "adapters_at_once": 257}, "evaluator.adapters_at_once is 257; a whole number up to 256"),
        ({"adapters_at_once": -1}, "evaluator.adapters_at_once is -1; a whole number up to 256"),
        ({"adapters_at_once": True}, "evaluator.adapters_at_once is True"),
        ({"adapters_at_once": "many"}, "evaluator.adapters_at_once is 'many'"),
        ({"engine_args": {"max_loras": 4}}, "engine_args has max_loras; set evaluator.adapters_at_once"),
        ({"engine_args": {"enable_lora": True}}, "evaluator.adapters_at_once says whether"),
        ({"engine_args": {"lora_target_modules": ["q_proj"]}}, "the pool's adapters say which"),
        ({"engine_args": {"max_lora_rank": 24}}, "max_lora_rank is 24; one of 1, 8, 16, 32, 64"),
    ],
)
def test_settings_of_adapters_that_are_none(node: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as found:
        engines.EngineSettings.of({"engine": "vllm", **node})
    assert said in str(found.value)
