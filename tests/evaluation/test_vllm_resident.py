"""vLLM's engine with merged weights beside transformers with the same, and what goes wrong without each guard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm_models import KINDS, VOCABULARY, know_architectures, save_models

from evomerge.candidate import Candidate
from evomerge.errors import DeviceLostError, EngineError, InfeasibleError, RecipeError
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.worker import Worker
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.sources import Placement
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.objectives import Objective
from evomerge.protocols import Scores
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe

pytest.importorskip("vllm", reason="vLLM is not installed: scripts/vllm_environment.sh FOLDER makes an environment")
pytestmark = pytest.mark.vllm

NATS = 1e-3
SETTINGS = EngineSettings("vllm", {"kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 16})
_RNG = np.random.default_rng(5)
PROMPTS = [[int(token) for token in _RNG.integers(3, VOCABULARY, length)] for length in (4, 90, 37, 160)]
WRITTEN = 6


def resident(pool: Pool) -> Any:
    from evomerge.evaluation.vllm_resident import VllmResident

    return VllmResident(pool, "cpu", SETTINGS, CacheSettings())


@pytest.fixture(scope="module", autouse=True)
def _known() -> None:
    know_architectures()


@pytest.fixture(scope="module", params=list(KINDS))
def pool(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return open_pool(save_models(tmp_path_factory.mktemp(request.param), request.param), base="base")


@pytest.fixture(scope="module")
def held(pool: Pool) -> Iterator[Any]:
    """An engine that nothing has checked."""
    held = resident(pool)
    yield held
    held.close()


def random_recipe(pool: Pool, method: str, rng: np.random.Generator) -> Recipe:
    """A recipe with parameters of its own on every slice."""
    slices = []
    for slice_ in pool.info.slices:
        if method == "slerp":
            inputs = (Input("a"), Input("b"))
            slices.append(SliceRecipe(slice_, "slerp", inputs, (("t", float(rng.uniform())),)))
            continue
        inputs = tuple(
            Input(name, None, (("density", float(rng.uniform(0.2, 0.9))), ("weight", float(rng.uniform(0.2, 1.0)))))
            for name in ("a", "b")
        )
        slices.append(SliceRecipe(slice_, "ties", inputs, (), Input("base")))
    return pool.info.recipe(slices)


def of_engine(llm: Any) -> tuple[list[float], list[list[int]]]:
    """Log-likelihoods of the prompts, and what is written after each: first that, by the prefix cache."""
    from vllm import SamplingParams, TokensPrompt

    asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in PROMPTS]
    plain = {"temperature": 0.0, "detokenize": False, "ignore_eos": True}
    texts = llm.generate(asked, SamplingParams(**plain, max_tokens=WRITTEN), use_tqdm=False)
    scored = llm.generate(asked, SamplingParams(**plain, max_tokens=1, prompt_logprobs=1), use_tqdm=False)
    values = [
        sum(found[token].logprob for found, token in zip(o.prompt_logprobs[1:], prompt[1:], strict=True))
        for o, prompt in zip(scored, PROMPTS, strict=True)
    ]
    return values, [list(output.outputs[0].token_ids) for output in texts]


@torch.no_grad()
def assert_of(module: Any, found: tuple[list[float], list[list[int]]]) -> None:
    """Compare with transformers: the prompts' log-likelihoods, and that every token is the likeliest after the last."""
    for prompt, value, text in zip(PROMPTS, *found, strict=True):
        assert len(text) == WRITTEN
        logits = module(torch.tensor([[*prompt, *text[:-1]]]), use_cache=False).logits[0].log_softmax(dim=-1)
        own = logits[: len(prompt) - 1].double().gather(1, torch.tensor(prompt[1:])[:, None]).sum()
        assert abs(value - float(own)) / (len(prompt) - 1) < NATS
        assert text == logits[len(prompt) - 1 :].argmax(dim=-1).tolist()


def plain_model(pool: Pool) -> Resident:
    """The resident model that other engines are compared with."""
    return Resident(pool, "cpu", placement=Placement(0, 0, 0), cache=0, states=0)


def test_forty_candidates_are_transformers_own_and_the_first_one_comes_back(pool: Pool, held: Any) -> None:
    rng = np.random.default_rng(0)
    plain = plain_model(pool)
    plans = [make_plan(random_recipe(pool, m, rng), pool) for m in ("ties", "slerp") for _ in range(20)]
    seen = []
    for plan in plans:
        count = held.apply(plan)
        assert count.computed + count.memory + count.kept == len(plan.slices)
        plain.apply(plan)
        seen.append(of_engine(held.model.engine))
        assert_of(plain.model.module, seen[-1])
    assert len({tuple(values) for values, _ in seen}) == len(plans)
    held.apply(plans[0])  # forty swaps later
    assert of_engine(held.model.engine) == (pytest.approx(seen[0][0], abs=NATS), seen[0][1])


def test_one_slice_is_merged_and_the_rest_is_kept(pool: Pool, held: Any) -> None:
    recipe = pool.info.linear({"a": 1.0})
    held.apply(make_plan(recipe, pool))
    attn = SliceId("attn", 1)
    changed = [
        SliceRecipe(s.slice, "linear", (Input("b", None, (("weight", 1.0),)),), s.parameters) if s.slice == attn else s
        for s in recipe.slices
    ]
    plan = make_plan(pool.info.recipe(changed), pool)
    count = held.apply(plan)
    assert (count.computed + count.memory, count.kept) == (1, len(plan.slices) - 1)
    plain = plain_model(pool)
    plain.apply(plan)
    assert_of(plain.model.module, of_engine(held.model.engine))


def test_a_path_of_as_many_layers_is_a_swap_and_another_is_infeasible(pool: Pool, held: Any) -> None:
    def path(layers: Sequence[tuple[str, int]]) -> Recipe:
        parts = [s.component for s in pool.info.slices if s.layer == 0]
        outer = [SliceRecipe(s, "passthrough", (Input("a"),)) for s in pool.info.slices if s.layer is None]
        inner = [
            SliceRecipe(
                SliceId(part, place),
                "passthrough",
                (Input(model, layer),),
                scale=0.75 if place == 1 and part in ("attn", "mlp") else None,
            )
            for place, (model, layer) in enumerate(layers)
            for part in parts
        ]
        return pool.info.recipe(sorted([*outer, *inner], key=lambda s: s.slice.order))

    plan = make_plan(path([("a", 0), ("b", 2), ("b", 1)]), pool)
    held.apply(plan)
    plain = plain_model(pool)
    plain.apply(plan)
    assert_of(plain.model.module, of_engine(held.model.engine))
    with pytest.raises(InfeasibleError, match="has 2 layers, and the engine was started with 3"):
        held.apply(make_plan(path([("a", 0), ("a", 1)]), pool))


def test_the_check_at_the_start_passes_and_finds_what_the_guards_prevent(
    pool: Pool, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.evaluation import reference_scores, vllm_check, vllm_extension

    vllm_check.check_engine(held)
    if pool.config.model_type not in ("llama", "qwen2"):  # these take time, and what is beyond is the same for all
        return
    with monkeypatch.context() as without:  # of layers that fit into little memory
        without.setattr(reference_scores, "HOST_SHARE", 1e-12)
        assert reference_scores.fitting_layers(pool, 1 << 30) == 1
        vllm_check.check_engine(held)
    with monkeypatch.context() as without:
        without.setattr(held, "reset_prefix_cache", lambda: None)
        with pytest.raises(EngineError, match="the token that is written next differs"):
            vllm_check.check_engine(held)
    held.apply(make_plan(pool.info.linear({"b": 1.0}), pool))
    if pool.config.model_type == "qwen2":  # tied
        with monkeypatch.context() as without:
            without.setattr(vllm_extension, "renew_tied_head", lambda model: None)
            with pytest.raises(EngineError, match="a text's log-likelihood per token differs"):
                vllm_check.check_engine(held)
            held._held.clear()
    vllm_check.check_engine(held)


def test_part_of_a_fused_group_is_refused_and_the_engine_is_as_it_was(pool: Pool, held: Any) -> None:
    held.apply(make_plan(pool.info.linear({"a": 1.0}), pool))
    before = of_engine(held.model.engine)
    worker = held.model.engine.llm_engine.model_executor.driver_worker.worker
    entry = next(e for e in make_plan(pool.info.linear({"b": 1.0}), pool).slices if e.slice == SliceId("attn", 0))
    tensors = merge_slice(entry, pool)
    some = {name: tensor for name, tensor in tensors.items() if "k_proj" not in name}
    with pytest.raises(RecipeError, match=r"is given to the engine without 'model\.layers\.0\.self_attn\.k_proj"):
        worker.evomerge_slices._give(some)
    assert of_engine(held.model.engine) == (pytest.approx(before[0], abs=NATS), before[1])


class Engine:
    """A fitness that only looks at the engine."""

    objectives = (Objective("tokens"),)

    def prepare(self, model: Any) -> None:
        assert model.module is None

    def run(self, model: Any, part: Any = None) -> Scores:
        return Scores({"tokens": float(sum(map(sum, of_engine(model.engine)[1])))})


def test_a_worker_says_what_a_candidate_did_wrong_and_ends_with_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.evaluation import reference_scores

    pool = open_pool(save_models(tmp_path, "Llama", num_hidden_layers=2))
    with monkeypatch.context() as wrong:
        wrong.setattr(reference_scores, "TOLERANCE", {"float32": (1e-12, 1e-12)})
        with pytest.raises(EngineError, match="something else than transformers"):
            Worker(pool, {"search": Engine()}, device="cpu", engine=SETTINGS)  # type: ignore[dict-item]
    worker: Any = Worker(pool, {"search": Engine()}, device="cpu", engine=SETTINGS)  # type: ignore[dict-item]
    whole, half = (pool.info.linear({"a": weight}) for weight in (1.0, 0.5))
    first = worker.evaluate(Candidate(0, whole))
    assert first.ok
    assert worker.evaluate(Candidate(1, half)).objectives != first.objectives
    broken = worker.evaluate(Candidate(2, pool.info.linear({"a": 3.4e38})))
    assert broken.status == "failed"
    assert "are NaN or beyond the range of float32" in broken.error
    assert worker.evaluate(Candidate(3, whole)).objectives == first.objectives
    monkeypatch.setattr(worker._resident._llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(DeviceLostError, match="prefix cache could not be reset"):
        worker.evaluate(Candidate(4, half))
    worker.close()
