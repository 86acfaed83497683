"""Scores through a server against those of the resident model, and of ``lm_eval --model local-completions``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fitness_parity import assert_equal, responses
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from lora_server import BASE, LoraServer, running, save_adapters

from evomerge.candidate import Candidate
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.server_settings import ServerSettings
from evomerge.evaluation.worker import Worker
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from fitness.lm_eval_tasks import LmEvalFitness

ALL = ["choose", "complete", "read", "write"]
POSITIONS = 48


@pytest.fixture(scope="module")
def pool(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    adapters = save_adapters(model_folder, tmp_path_factory.mktemp("adapters"))
    models = {"base": str(model_folder)} | {name: f"{model_folder}+{place}" for name, place in adapters.items()}
    return open_pool(models, base="base")


@pytest.fixture(scope="module")
def server(model_folder: Path) -> LoraServer:
    return LoraServer(model_folder)


@pytest.fixture
def settings(server: LoraServer, tmp_path: Path) -> Iterator[ServerSettings]:
    with running(server) as url:
        yield ServerSettings(url, BASE, str(tmp_path / "served"), concurrency=3, retries=1)


def recipes(pool: Pool) -> list[Any]:
    shares = ({"base": 1.0}, {"a": 0.7, "b": 0.5, "base": -0.2}, {"b": 1.5, "base": -0.5})
    return [pool.info.linear(share) for share in shares]


def test_candidates_score_as_in_this_process(
    pool: Pool, settings: ServerSettings, server: LoraServer, tasks: Any
) -> None:
    served = LmEvalFitness(ALL, include_path=str(tasks.path), limit=6)
    # Stock code's model of servers makes windows of two tokens less than there are positions, and adds no BOS.
    own = LmEvalFitness(ALL, include_path=str(tasks.path), add_bos_token=False, max_length=POSITIONS - 2, limit=6)
    remote = Worker(pool, {"search": served}, engine=EngineSettings("server", server=settings))
    local = Worker(pool, {"search": own}, device="cpu")
    seen = []
    for number, recipe in enumerate(recipes(pool)):
        found, expected = (worker.evaluate(Candidate(number, recipe)) for worker in (remote, local))
        assert found.ok, found.error
        assert found.metrics["choose/acc"] == expected.metrics["choose/acc"]
        assert found.metrics["write/exact_match,whole"] == expected.metrics["write/exact_match,whole"]
        for name, values in expected.items.items():
            assert np.abs(found.items[name] - values).max() < 1e-4, name
        for name in ("choose", "complete"):
            for one, other in zip(responses(served)[name], responses(own)[name], strict=True):
                assert one[0] == (pytest.approx(other[0][0], abs=1e-4), other[0][1])
        seen.append(found.metrics["complete/perplexity"])
    assert len(set(seen)) == len(seen)
    assert server.most > 1
    part = remote.evaluate(Candidate(9, recipes(pool)[1], part={name: [1, 3] for name in ALL}))
    again = remote.evaluate(Candidate(8, recipes(pool)[1]))
    for name, values in part.items.items():
        assert values[[1, 3]] == pytest.approx(again.items[name][[1, 3]], abs=1e-5)
    assert part.metrics["complete/perplexity"] != again.metrics["complete/perplexity"]
    remote.close()
    assert not server.adapters
    assert not list(Path(settings.adapters).iterdir())


def test_scores_are_what_lm_eval_prints_for_the_adapter_on_the_server(
    pool: Pool, settings: ServerSettings, tasks: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path), batch_size=4, limit=6)
    worker: Any = Worker(pool, {"search": fitness}, engine=EngineSettings("server", server=settings))
    found = worker.evaluate(Candidate(0, recipes(pool)[1]))
    assert found.ok, found.error
    monkeypatch.setattr(evaluator, "add_env_info", lambda *_: None)
    arguments = {
        "model": worker._resident.served.name,
        "base_url": f"{settings.root}/v1/completions",
        "tokenizer": str(model_folder),
        "tokenizer_backend": "huggingface",
        "max_length": POSITIONS,
    }
    manager = TaskManager(include_path=str(tasks.path), include_defaults=False)
    given = {"tasks": ALL, "task_manager": manager, "bootstrap_iters": 0, "batch_size": 1, "limit": 6}
    expected = evaluator.simple_evaluate("local-completions", model_args=arguments, **given)
    assert_equal(fitness, found, expected)
    worker.close()
