"""Searches that ask an engine for what it cannot do end before anything is started."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError, EvomergeError
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
