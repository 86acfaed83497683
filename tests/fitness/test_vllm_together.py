"""Candidates that are adapters, scored at once: as one at a time, as transformers, and in whole searches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_server import save_adapters
from vllm_models import know_architectures, save_for_tasks

import evomerge
from evomerge.candidate import Candidate
from evomerge.errors import FitnessError
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.worker import Worker
from evomerge.merge.methods.low_rank import Factors
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from fitness.lm_eval_tasks import LmEvalFitness

pytest.importorskip("vllm", reason="vLLM is not installed: scripts/vllm_environment.sh FOLDER makes an environment")
pytestmark = pytest.mark.vllm

ALL: list[Any] = ["choose", "complete", "read", "write"]
POSITIONS = 64
ARGUMENTS = {"kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 16, "enforce_eager": True, "max_model_len": POSITIONS}
VALUES = ("complete/perplexity", "read/bits_per_byte", "choose/brier_score", "write/exact_match,whole")


@pytest.fixture(scope="module")
def folders(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base with the tokenizer that the tasks are written for and heads that vLLM takes, and three adapters of it."""
    know_architectures()
    root = tmp_path_factory.mktemp("adapted")
    save_for_tasks(root / "base", model_folder, POSITIONS)
    adapters = save_adapters(root / "base", root / "adapters", names="abc")
    return {"base": str(root / "base")} | {name: f"{root / 'base'}+{place}" for name, place in adapters.items()}


def recipes_of(pool: Pool) -> list[Recipe]:
    shares = (
        {"base": 1.0},
        {"a": 0.7, "b": 0.5, "base": -0.2},
        {"b": 1.5, "base": -0.5},
        {"a": 1.0},
        {"a": 0.4, "c": 0.6},
    )
    return [pool.info.linear(share) for share in shares]


def words(text: str) -> list[str]:
    """Without special tokens, which lm-eval's vLLM model shows."""
    return [word for word in text.split() if not word.startswith("<")]


def close(one: Any, other: Any) -> bool:
    return all(np.abs(one.items[name] - other.items[name]).max() < 1e-3 for name in VALUES)


def test_four_at_once_score_as_one_at_a_time_and_as_transformers(
    folders: dict[str, str], tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.evaluation.vllm_adapters import EngineAdapters

    pool = open_pool(folders, base="base")
    recipes = recipes_of(pool)
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path))
    own = LmEvalFitness(ALL, include_path=str(tasks.path), max_length=POSITIONS - 2)
    settings = EngineSettings("vllm", ARGUMENTS, adapters=4)
    worker: Any = Worker(pool, {"search": fitness}, device="cpu", engine=settings)
    local = Worker(pool, {"search": own}, device="cpu")
    llm, calls = worker._resident.model.engine, list[int]()
    generate = llm.generate

    def counted(prompts: Any, **options: Any) -> Any:
        calls.append(len({request.lora_name for request in options["lora_request"]}))
        return generate(prompts, **options)

    candidates = [Candidate(number, recipe) for number, recipe in enumerate(recipes)]
    with monkeypatch.context() as watched:
        worker.fitness("search")
        watched.setattr(llm, "generate", counted)
        together = worker.evaluate_together(candidates)
    # Log-likelihoods, rolling ones in two calls of stock code's, and texts: of four candidates, then of the fifth.
    assert calls == [4] * 4 + [1] * 4
    assert [evaluation.candidate for evaluation in together] == [0, 1, 2, 3, 4]
    for candidate, found in zip(candidates, together, strict=True):
        alone, expected = worker.evaluate(candidate), local.evaluate(candidate)
        assert found.ok, found.error
        assert close(found, alone)
        assert close(found, expected)
        assert found.metrics["choose/acc"] == expected.metrics["choose/acc"]
        texts = [list(evaluation.responses["write"]) for evaluation in (found, alone, expected)]
        assert texts[0] == texts[1]
        assert [words(text) for text in texts[0]] == [words(text) for text in texts[2]]
        assert found.seconds["model"] > 0 <= found.seconds["other"]
    assert len({evaluation.metrics["complete/perplexity"] for evaluation in together}) == len(recipes)

    parts = [{name: [1, 3] for name in ALL}, {name: [0, 2] for name in ALL}, None]
    some = worker.evaluate_together([Candidate(n, recipes[n], part=part) for n, part in enumerate(parts)])
    for evaluation, whole, part in zip(some, together, parts, strict=False):
        assert evaluation.ok, evaluation.error
        for name, values in evaluation.items.items():
            places = part[name.split("/")[0]] if part is not None else range(len(values))
            assert values[places] == pytest.approx(whole.items[name][list(places)], abs=1e-3)
            assert np.isnan(values).sum() == len(values) - len(places)

    ties = pool.info.recipe(
        [
            type(s)(
                s.slice,
                "ties",
                tuple(type(i)(i.model, None, (("weight", 1.0),)) for i in s.inputs[:2]),
                (),
                s.inputs[0],
            )
            for s in pool.info.linear({"base": 1.0, "a": 1.0}).slices
        ]
    )
    wild = pool.info.linear({"a": 3e38, "b": -3e38, "base": 1.0})
    mixed = [
        Candidate(0, recipes[1]),
        Candidate(1, wild),
        Candidate(2, None),
        Candidate(3, ties),
        Candidate(4, recipes[3]),
    ]
    found = worker.evaluate_together(mixed)
    assert [evaluation.status for evaluation in found] == ["ok", "failed", "infeasible", "ok", "ok"]
    assert found[3].merge["bytes"] > 0  # it was merged
    assert close(found[0], together[1])
    assert close(found[4], together[3])
    assert close(found[3], local.evaluate(mixed[3]))

    # Factors that are finite, and activations that are not: NaN in the cache of keys would reach the others.
    finite = EngineAdapters._written
    huge = Candidate(1, pool.info.linear({"b": 0.9, "base": 0.1}))

    def overflowing(self: Any, adapter: Any) -> Any:
        factors = {
            module: (Factors(own.b * 1e25, own.a * 1e13), kind) if "down_proj" in module else (own, kind)
            for module, (own, kind) in adapter.factors.items()
        }
        wanted = worker._resident.adapter_models.find(worker._plan(huge.recipe)).key
        return finite(self, replace(adapter, factors=factors) if adapter.key == wanted else adapter)

    with monkeypatch.context() as broken:
        broken.setattr(EngineAdapters, "_written", overflowing)
        found = worker.evaluate_together([mixed[0], huge, mixed[4]])
    assert [evaluation.status for evaluation in found] == ["ok", "failed", "ok"]
    assert "finite" in found[1].error or "NaN" in found[1].error or "nan" in found[1].error
    assert close(found[0], together[1])
    assert close(found[2], together[3])

    session: Any = fitness._ready().session
    score, taken = session.take, list[Any]()

    def fails(*given: Any) -> Any:
        """Of the second, also when it is tried alone."""
        taken.append(given)
        if len(taken) in (2, 4):
            raise FitnessError("a document that cannot be scored")
        return score(*given)

    with monkeypatch.context() as broken:
        broken.setattr(session, "take", fails)
        found = worker.evaluate_together(candidates[:3])
    assert [evaluation.error for evaluation in found] == ["", "a document that cannot be scored", ""]
    assert close(found[2], together[2])

    tries = [0]

    def breaks(prompts: Any, **options: Any) -> Any:
        """Once, with all of them."""
        tries[0] += 1
        if tries[0] == 1:
            raise RuntimeError("something inside")
        return generate(prompts, **options)

    with monkeypatch.context() as broken:
        broken.setattr(llm, "generate", breaks)
        found = worker.evaluate_together(candidates[:3])
    assert all(close(one, other) for one, other in zip(found, together, strict=False))
    assert tries[0] == 1 + 3 * 4
    worker.close()


def asked(folders: dict[str, str], tasks: Any, run: Path, *more: str) -> list[str]:
    models = ", ".join(f"{name}: '{place}'" for name, place in folders.items())
    return [
        *(f"pool.models={{{models}}}", "pool.base=base", "search_space=task_arithmetic", "strategy=cma_es"),
        *("strategy.popsize=6", "fitness=lm_eval", f"fitness.include_path={tasks.path}", "search.racing.first=null"),
        "fitness.tasks=[{task: choose, metrics: {brier_score: 1}}]",
        *("search.evaluations=12", f"run_dir={run}", "evaluator.device=cpu", "evaluator.engine=vllm"),
        f"evaluator.engine_args={{{', '.join(f'{name}: {value}' for name, value in ARGUMENTS.items())}}}",
        *more,
    ]


def told(run: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [event for event in events if "status" in event]


def test_a_search_with_adapters_is_that_of_merged_models_and_goes_on_where_it_was_ended(
    folders: dict[str, str], tasks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    together = evomerge.search(*asked(folders, tasks, tmp_path / "together", "evaluator.adapters_at_once=4"))
    assert "as adapters of rank 16 at most, 4 at once" in " ".join(capsys.readouterr().out.split())
    merged = evomerge.search(*asked(folders, tasks, tmp_path / "merged", "evaluator.adapters_at_once=0"))
    assert "merged slice by slice" in " ".join(capsys.readouterr().out.split())
    lines = told(tmp_path / "together"), told(tmp_path / "merged")
    assert len(lines[0]) == len(lines[1]) >= 12 + 5
    for one, other in zip(*lines, strict=True):
        assert one["candidate"] == other["candidate"]
        assert one["objectives"]["score"] == pytest.approx(other["objectives"]["score"], abs=1e-3)
    assert together.best
    assert merged.best
    assert together.best.candidate == merged.best.candidate

    # The ledger as a session leaves it that was killed in the middle of a group.
    from evomerge.session.watched import resume

    ended = tmp_path / "ended"
    (tmp_path / "together").rename(ended)
    lines_of = (ended / "ledger.jsonl").read_text().splitlines(keepends=True)
    places = [n for n, line in enumerate(lines_of) if "status" in json.loads(line)]
    (ended / "ledger.jsonl").write_text("".join(lines_of[: places[8] + 1]))
    for path in ended.glob("checkpoints/*"):
        path.unlink()
    resume(ended, display="quiet")
    again = told(ended)
    assert [event["candidate"] for event in again] == [event["candidate"] for event in lines[0]]
    for one, other in zip(again, lines[0], strict=True):
        assert one["objectives"]["score"] == pytest.approx(other["objectives"]["score"], abs=1e-3)
