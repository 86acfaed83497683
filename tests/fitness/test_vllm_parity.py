"""Scores by vLLM's engine against ``lm_eval --model vllm`` on the exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fitness_parity import assert_equal, responses
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from vllm_models import know_architectures

from evomerge.candidate import Candidate
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.worker import Worker
from evomerge.export.writer import write_model
from evomerge.models.opening import open_pool
from fitness.lm_eval_tasks import LmEvalFitness

pytest.importorskip("vllm", reason="vLLM is not installed: scripts/vllm_environment.sh FOLDER makes an environment")
pytestmark = pytest.mark.vllm

ALL = ["choose", "complete", "read", "write"]
ARGUMENTS = {"kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 16, "enforce_eager": True}


def stock(folder: Path, tasks: list[str], include_path: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What ``lm_eval --model vllm --batch_size auto`` computes, its engine ended afterwards."""
    from lm_eval.models.vllm_causallms import VLLM

    from evomerge.evaluation.vllm_resident import SEED, _stop

    monkeypatch.setattr(evaluator, "add_env_info", lambda *_: None)
    arguments = {"pretrained": str(folder), "dtype": "float32", "seed": SEED, **ARGUMENTS}
    lm = VLLM(**arguments, batch_size="auto")
    manager = TaskManager(include_path=include_path, include_defaults=False)
    greedy = {"temperature": 0.0}  # which a fitness takes where a task says nothing
    found = evaluator.simple_evaluate(lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, gen_kwargs=greedy)
    _stop(lm.model)
    return found


@pytest.fixture(scope="module", autouse=True)
def _known() -> None:
    know_architectures()


@pytest.fixture(scope="module")
def folders(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two models with the tokenizer that the tasks are written for, and heads that vLLM takes."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    for seed, name in enumerate("ab"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: str(root / name) for name in "ab"}


def test_a_candidate_scores_as_stock_lm_eval_does_on_what_is_exported(
    folders: dict[str, str], tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool(folders)
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path))
    worker = Worker(pool, {"search": fitness}, device="cpu", engine=EngineSettings("vllm", ARGUMENTS))
    recipes = [pool.info.linear({"a": 1 - share, "b": share}) for share in (0.0, 0.5)]
    first, found = (worker.evaluate(Candidate(number, recipe)) for number, recipe in enumerate(recipes))
    assert found.ok, found.error
    assert found.metrics != first.metrics
    answered = responses(fitness)
    part = worker.evaluate(Candidate(2, recipes[1], part={name: [1, 3] for name in ALL}))
    for name, values in part.items.items():
        assert values[[1, 3]] == pytest.approx(found.items[name][[1, 3]], abs=1e-4)
    again = worker.evaluate(Candidate(3, recipes[1]))
    assert again.metrics == found.metrics
    assert responses(fitness) == answered
    worker.close()
    write_model(recipes[1], pool, tmp_path / "merged")
    expected = stock(tmp_path / "merged", ALL, str(tasks.path), monkeypatch)
    for name, table in expected["results"].items():
        for metric, value in table.items():
            if "," in metric and "_stderr" not in metric:
                assert again.metrics[f"{name}/{metric.removesuffix(',none')}"] == value, (name, metric)
    assert_equal(fitness, again, expected)


def test_a_search_on_the_demo_ends_with_the_scores_of_stock_lm_eval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evomerge
    from evomerge.demo import train
    from evomerge.demo.pool import make_demo_pool

    # The demo's heads are 24 wide, which vLLM takes on GPUs only.
    monkeypatch.setitem(train.MODEL, "num_attention_heads", 3)
    monkeypatch.setitem(train.MODEL, "num_key_value_heads", 3)
    folder = make_demo_pool(tmp_path / "pool", threads=1, quick=True, progress=False)
    run = evomerge.search(
        "experiment=demo",
        "evaluator.engine=vllm",
        f"pool.root={folder}",
        f"evaluator.engine_args={{kv_cache_memory_bytes: {64 << 20}, max_num_seqs: 16, enforce_eager: true}}",
        search={"evaluations": 40},
        run_dir=str(tmp_path / "run"),
        display="quiet",
    )
    best = run.best
    merged = best.recipe.save(tmp_path / "merged")
    names = [f"demo_{name}" for name in ("e_maths", "j_language", "j_maths")]
    results = stock(merged, names, str(folder / "tasks"), monkeypatch)["results"]
    told = dict(best.metrics)
    assert len(told) >= len(names) * 2
    for key, value in told.items():
        task, metric = key.split("/")
        assert results[task][f"{metric},none"] == value, key
