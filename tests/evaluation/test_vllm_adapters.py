"""Candidates as adapters in vLLM's engine, several at once, beside transformers with the same weights merged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_server import save_adapters
from vllm_models import VOCABULARY, know_architectures, save_models

from evomerge.errors import EngineError, RecipeError
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.merge.execution.sources import Placement
from evomerge.merge.methods.low_rank import Factors
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.slices import Input, SliceRecipe

pytest.importorskip("vllm", reason="vLLM is not installed: scripts/vllm_environment.sh FOLDER makes an environment")
pytestmark = pytest.mark.vllm

NATS = 1e-3
AT_ONCE = 4
SETTINGS = EngineSettings("vllm", {"kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 16}, adapters=AT_ONCE)
_RNG = np.random.default_rng(5)
PROMPTS = [[int(token) for token in _RNG.integers(3, VOCABULARY, length)] for length in (4, 90, 37, 160)]
WRITTEN = 6


@pytest.fixture(scope="module", params=["Llama", "Qwen2"])
def pool(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    know_architectures()
    root = tmp_path_factory.mktemp(request.param)
    base = save_models(root, request.param)["base"]
    adapters = save_adapters(Path(base), root / "adapters", names="abc")
    return open_pool({"base": base} | {name: f"{base}+{place}" for name, place in adapters.items()}, base="base")


@pytest.fixture(scope="module")
def held(pool: Pool) -> Iterator[Any]:
    from evomerge.evaluation.vllm_resident import VllmResident

    held = VllmResident(pool, "cpu", SETTINGS, CacheSettings())
    yield held
    held.close()


def plan_of(pool: Pool, weights: dict[str, float]) -> Plan:
    """The base and weighted differences from it, other weights in every layer."""
    slices = []
    for slice_ in pool.info.slices:
        share = 1.0 if slice_.layer is None else 1.0 + 0.1 * slice_.layer
        inputs = tuple(Input(name, None, (("weight", share * weight),)) for name, weight in weights.items())
        slices.append(SliceRecipe(slice_, "task_arithmetic", inputs, (), Input("base")))
    return make_plan(pool.info.recipe(slices), pool)


def asked(llm: Any, adapters: Sequence[Any]) -> list[tuple[list[float], list[list[int]]]]:
    """For each adapter the log-likelihoods of the prompts, and what is written after each: all in two calls."""
    from vllm import SamplingParams, TokensPrompt

    prompts = [TokensPrompt(prompt_token_ids=prompt) for _ in adapters for prompt in PROMPTS]
    whose = [adapter for adapter in adapters for _ in PROMPTS]
    plain = {"temperature": 0.0, "detokenize": False, "ignore_eos": True}
    texts = llm.generate(prompts, SamplingParams(**plain, max_tokens=WRITTEN), use_tqdm=False, lora_request=whose)
    scoring = SamplingParams(**plain, max_tokens=1, prompt_logprobs=1)
    scored = llm.generate(prompts, scoring, use_tqdm=False, lora_request=whose)
    values = [
        sum(found[token].logprob for found, token in zip(o.prompt_logprobs[1:], prompt[1:], strict=True))
        for o, prompt in zip(scored, PROMPTS * len(adapters), strict=True)
    ]
    tokens = [list(output.outputs[0].token_ids) for output in texts]
    count = len(PROMPTS)
    return [(values[at : at + count], tokens[at : at + count]) for at in range(0, len(values), count)]


@torch.no_grad()
def is_of(module: Any, found: tuple[list[float], list[list[int]]]) -> bool:
    """Whether these are the prompts' log-likelihoods, and every token the likeliest after the last."""
    for prompt, value, text in zip(PROMPTS, *found, strict=True):
        logits = module(torch.tensor([[*prompt, *text[:-1]]]), use_cache=False).logits[0].log_softmax(dim=-1)
        own = logits[: len(prompt) - 1].double().gather(1, torch.tensor(prompt[1:])[:, None]).sum()
        if not abs(value - float(own)) / (len(prompt) - 1) < NATS:
            return False
        if text != logits[len(prompt) - 1 :].argmax(dim=-1).tolist():
            return False
    return True


def loaded(held: Any, plans: Sequence[Plan]) -> list[Any]:
    """The requests of plans that are adapters."""
    held.adapter_models.begin()
    return [held.adapter_models.load(held.adapter_models.find(plan))[0].adapter for plan in plans]


WEIGHTS: list[dict[str, float]] = [
    {"a": 1.0},
    {"a": 0.5, "b": 0.7, "c": -0.4},
    {},  # the base itself
    {"b": 1.3},
    {"c": 0.8, "a": -1.0},
    {"a": 0.3, "b": 0.3, "c": 0.3},
]


def test_four_at_once_are_transformers_own_and_so_are_those_after_them(pool: Pool, held: Any) -> None:
    plain = Resident(pool, "cpu", placement=Placement(0, 0, 0), cache=0, states=0)
    plans = [
        make_plan(pool.info.linear({"base": 1.0}), pool) if not weights else plan_of(pool, weights)
        for weights in WEIGHTS
    ]
    assert held.adapter_models.fitting.rank == 16  # 2 + 3 + 4, and what vLLM keeps room for
    seen = []
    for group in (plans[:4], plans[4:], plans[:2]):  # the last two come again when others have taken their room
        found = asked(held.model.engine, loaded(held, group))
        for plan, own in zip(group, found, strict=True):
            plain.apply(plan)
            assert is_of(plain.model.module, own)
        seen += found
    assert len({tuple(values) for values, _ in seen[:6]}) == 6
    for plan, together in zip(plans[:4], seen[:4], strict=True):
        (alone,) = asked(held.model.engine, loaded(held, [plan]))
        assert alone == (pytest.approx(together[0], abs=NATS), together[1])
    folders = list(held.adapter_models._folder.glob("*-*"))
    assert len(folders) == AT_ONCE  # of the others nothing is left


def test_what_is_no_adapter_is_merged_between_adapters(pool: Pool, held: Any) -> None:
    slices = [
        SliceRecipe(
            s, "ties", tuple(Input(n, None, (("density", 0.5), ("weight", 1.0))) for n in "ab"), (), Input("base")
        )
        for s in pool.info.slices
    ]
    ties, adapter = make_plan(pool.info.recipe(slices), pool), plan_of(pool, {"a": 0.6, "c": 0.9})
    assert held.adapter_models.find(ties) is None
    plain = Resident(pool, "cpu", placement=Placement(0, 0, 0), cache=0, states=0)
    for _ in range(2):
        held.apply(ties)
        plain.apply(ties)
        assert is_of(plain.model.module, asked(held.model.engine, [None])[0])
        (own,) = asked(held.model.engine, loaded(held, [adapter]))
        plain.apply(adapter)
        assert is_of(plain.model.module, own)


def test_the_check_at_the_start_finds_names_and_numbers_that_are_used_again(
    pool: Pool, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.evaluation import vllm_check

    vllm_check.check_engine(held)
    if pool.config.model_type != "llama":  # the same for all
        return
    models = held.adapter_models
    with monkeypatch.context() as without:
        without.setattr(models, "_next_number", lambda: 7)
        models._known.clear()
        with pytest.raises(EngineError, match="as an adapter"):
            vllm_check.check_engine(held)
    models._known.clear()
    stock = models._request

    def renamed(name: str, number: int, folder: Path) -> Any:
        """The same name and place for all: what is there is other content each time."""
        found = stock("same", number, folder)
        found.lora_path = str(folder.parent / "same")
        folder.rename(found.lora_path)
        return found

    with monkeypatch.context() as without:
        without.setattr(models, "_request", renamed)
        held.apply(models.fitting.base)
        found = []
        for weights in ({"a": 1.0}, {"b": 1.0}):
            models._known.clear()
            found += asked(held.model.engine, loaded(held, [plan_of(pool, weights)]))
            shutil.rmtree(models._folder / "same")
    plain = Resident(pool, "cpu", placement=Placement(0, 0, 0), cache=0, states=0)
    for weights, own, right in (({"a": 1.0}, found[0], True), ({"b": 1.0}, found[1], False)):
        plain.apply(plan_of(pool, weights))
        assert is_of(plain.model.module, own) is right
    models._known.clear()
    vllm_check.check_engine(held)


def test_an_adapter_that_vllm_does_not_take_is_said(pool: Pool, held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held.adapter_models.fitting, "targets", [])
    assert held.adapter_models.find(plan_of(pool, {"a": 0.9})) is None
    monkeypatch.undo()
    monkeypatch.setattr(held.adapter_models.fitting, "rank", 8)
    assert held.adapter_models.find(plan_of(pool, {"a": 1.0, "b": 1.0, "c": 1.0})) is None  # of rank 9
    found = held.adapter_models.find(plan_of(pool, {"a": 0.91}))
    factors, kind = next(iter(found.factors.values()))
    wide = Factors(factors.b[:, :1].expand(-1, 40), factors.a[:1].expand(40, -1))
    broken = replace(found, key="another", factors={next(iter(found.factors)): (wide, kind)})
    with pytest.raises(RecipeError, match="vLLM does not take its adapter"):
        held.adapter_models.load(broken)
