"""Several candidates in one module, against each candidate's own weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import ConfigError, FitnessError
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.limits import check_at_once
from evomerge.evaluation.local import LocalEvaluator
from evomerge.evaluation.worker import Worker
from evomerge.merge.adapters.at_once import AtOnce, Term
from evomerge.merge.methods.low_rank import Factors
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.objectives import Objective
from evomerge.protocols import Scores
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.shared_forwards import BatchLimits, SharedForwards

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = torch.arange(3, 23).view(2, 10)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=48, tie_word_embeddings=False)).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=48, n_positions=64, tie_word_embeddings=False)
    return GPT2LMHeadModel(config).eval()


def random_terms(module: torch.nn.Module, kinds: dict[str, Any], count: int) -> list[dict[str, Term]]:
    """For each candidate factors of some of the modules, of ranks of its own."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(count):
        terms = {}
        for place, (name, kind) in enumerate(kinds.items()):
            if (place + number) % 3 == 2:
                continue
            rows, columns = module.get_submodule(name).weight.shape
            rank = 1 + (place + number) % 3
            b, a = (0.2 * torch.randn(s, generator=generator) for s in ((rows, rank), (rank, columns)))
            terms[name] = Term(Factors(b, a), kind, torch.rand(rank, generator=generator) if number == 1 else None)
        found.append(terms)
    return found


def folded(module: torch.nn.Module, terms: dict[str, Term]) -> Any:
    """A copy with the terms in its weights."""
    own = copy.deepcopy(module)
    with torch.no_grad():
        for name, term in terms.items():
            b, a = term.factors
            own.get_submodule(name).weight += (b * (1 if term.scales is None else term.scales)) @ a
    return own


LLAMA = {f"model.layers.{layer}.{name}_proj": "linear" for layer in (0, 1) for name in ("self_attn.q", "mlp.down")}
LLAMA |= {"model.embed_tokens": "embedding", "lm_head": "linear"}
GPT2 = {f"transformer.h.{layer}.{name}": "turned" for layer in (0, 1) for name in ("attn.c_attn", "mlp.c_proj")}


@pytest.mark.parametrize(("make", "kinds"), [(llama, LLAMA), (gpt2, GPT2)], ids=["llama", "gpt2"])
def test_rows_are_those_of_each_candidates_own_weights(make: Callable[[], Any], kinds: dict[str, Any]) -> None:
    module = make()
    terms = [*random_terms(module, kinds, 4), {}]
    wanted = torch.stack([folded(module, own)(TOKENS).logits for own in terms])
    before = module(TOKENS).logits
    at_once = AtOnce(module, terms)
    with torch.no_grad(), at_once.installed():
        found = module(TOKENS.repeat(5, 1)).logits.view(5, 2, 10, -1)
        with at_once.only(1, 3):
            some = module(TOKENS.repeat(2, 1)).logits.view(2, 2, 10, -1)
        with at_once.only(3):
            one = module(TOKENS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(some, wanted[1:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one, wanted[3], rtol=1e-5, atol=1e-5)
    assert (found[0] - found[4]).abs().max() > 0.01
    assert torch.equal(module(TOKENS).logits, before)
    assert not any(part._forward_hooks for part in module.modules())


def test_candidates_that_share_factors_have_scales_between_them() -> None:
    module = llama()
    shared = {name: term.factors for name, term in random_terms(module, LLAMA, 1)[0].items()}
    scales = torch.tensor([[0.5], [-1.0], [0.0]])
    terms = [{name: Term(own, LLAMA[name], scale.expand(own.rank)) for name, own in shared.items()} for scale in scales]
    at_once = AtOnce(module, [*terms, {}])
    assert at_once.nbytes == sum(own.b.nbytes + own.a.nbytes for own in shared.values())  # once for all four
    with torch.no_grad(), at_once.installed():
        found = module(TOKENS.repeat(4, 1)).logits.view(4, 2, 10, -1)
    wanted = torch.stack([folded(module, own)(TOKENS).logits for own in [*terms, {}]])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_products_are_added_in_the_dtype_of_the_layer() -> None:
    module = llama().to(torch.bfloat16)
    terms = random_terms(module, LLAMA, 2)
    with torch.no_grad(), AtOnce(module, terms).installed():
        found = module(TOKENS.repeat(2, 1)).logits.view(2, 2, 10, -1)
    assert found.dtype == torch.bfloat16
    for own, logits in zip(terms, found, strict=True):
        wanted = folded(module.float(), own)(TOKENS).logits
        module.to(torch.bfloat16)
        assert (logits.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("tokens", [8, 24, 256])
def test_shared_forwards_of_several_are_those_of_each(tokens: int) -> None:
    """Trees with a trunk, several lines, and fewer models in a forward than there are."""
    module = llama()
    rng = np.random.default_rng(0)
    stem = rng.integers(0, 48, 20).tolist()
    requests = [
        TokenRequest(i, stem[: 4 * (i % 6)] + rng.integers(0, 48, 3).tolist(), rng.integers(0, 48, 1 + i % 2).tolist())
        for i in range(12)
    ]

    def forwards(own: Any) -> SharedForwards:
        return SharedForwards(requests, own, max_length=64, limits=BatchLimits(tokens), softmax_dtype=None)

    terms = random_terms(module, LLAMA, 5)
    at_once = AtOnce(module, terms)
    with at_once.installed():
        values, greedy = forwards(module).score_several(module, at_once)
    assert values.shape == greedy.shape == (5, 12)
    for own, value, right in zip(terms, values, greedy, strict=True):
        alone = folded(module, own)
        wanted, hits = forwards(alone).score(alone)
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(right, hits)


class Logits:
    """Scores a model by its logits, rounded; one of the runs may go wrong."""

    objectives = (Objective("score"),)

    def __init__(self, bad: float | None = None) -> None:
        self.bad, self.runs, self.states = bad, 0, []

    def check(self) -> None:
        pass

    def prepare(self, model: Any) -> None:
        pass

    def run(self, model: Any, part: Any = None) -> Scores:
        self.runs += 1
        self.states.append(model.states)
        with torch.no_grad():
            value = float(model.module(TOKENS % 32).logits.double().square().mean())
        if self.bad is not None and abs(value - self.bad) < 1e-4 * self.bad:
            raise FitnessError("item 3 has no score")
        return Scores({"score": value}, {"toy/score": value}, {"toy/score": np.array([value])})

    def fingerprint(self) -> str:
        return "sha256:logits"


@pytest.fixture
def pool(tiny_model: TinyModel, tmp_path: Path) -> Pool:
    """A base, and the base with two adapters."""
    base = tiny_model("base")
    locations = {"base": str(base)}
    for seed, name in enumerate(("math", "code")):
        model = AutoModelForCausalLM.from_pretrained(base)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"]))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        adapted.save_pretrained(tmp_path / f"{name}-lora")
        locations[name] = f"base+{name}-lora"
    return open_pool(locations, "base", tmp_path)


def merged(pool: Pool, method: str = "task_arithmetic", **weights: float) -> Recipe:
    inputs = tuple(Input(name, None, parameters({"weight": weight})) for name, weight in weights.items())
    return pool.info.recipe(SliceRecipe(s, method, inputs, (), Input("base")) for s in pool.info.slices)


def some(pool: Pool) -> list[Candidate]:
    """Sums of adapters, the base, a sum without a base, one that masks, and one that has no recipe."""
    ties = merged(pool, "ties", math=1.0, code=0.5)
    by_tensor = pool.info.recipe(
        SliceRecipe(s, "task_arithmetic", (Input("math", None, parameters({"weight": 0.1 * n})),), (), Input("base"))
        for n, s in enumerate(pool.info.slices)
    )
    recipes = [merged(pool, math=0.5, code=-0.75), pool.info.linear({"base": 1.0}), ties, None, by_tensor]
    recipes += [pool.info.linear({"math": 0.5, "code": 0.5}), merged(pool, math=1.5)]
    return [Candidate(number, recipe) for number, recipe in enumerate(recipes)]


def test_a_worker_scores_adapters_at_once_as_one_at_a_time(pool: Pool) -> None:
    candidates = some(pool)
    alone, together = Logits(), Logits()
    one = Worker(pool, {"search": alone}, device="cpu")
    wanted = [one.evaluate(candidate) for candidate in candidates]
    worker = Worker(pool, {"search": together}, device="cpu")
    before = [parameter.detach().clone() for parameter in worker._resident.model.module.parameters()]
    found = worker.evaluate_together(candidates)
    assert [own.candidate for own in found] == list(range(len(candidates)))
    assert [own.status for own in found] == [own.status for own in wanted]
    assert [own.status for own in found].count("infeasible") == 1
    for own, other in zip(found, wanted, strict=True):
        assert own.objectives == pytest.approx(other.objectives, rel=1e-6)
    values = [own.objectives["score"] for own in found if own.ok]
    assert len({round(value, 6) for value in values}) == len(values)
    assert together.states.count(None) == 5  # sums of adapters and the base: not with the base's hidden states
    assert found[0].merge["kept"] + found[0].merge["computed"] > 0
    assert found[4].merge["computed"] == 0
    worker.evaluate(Candidate(9, pool.info.linear({"base": 1.0})))
    after = worker._resident.model.module.parameters()
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_one_that_fails_does_not_fail_the_others(pool: Pool) -> None:
    candidates = some(pool)
    plain = [own for own in some(pool) if own.id in (0, 4, 6)]
    scores = [
        own.objectives["score"] for own in Worker(pool, {"search": Logits()}, device="cpu").evaluate_together(plain)
    ]
    worker = Worker(pool, {"search": Logits(bad=scores[1])}, device="cpu")
    found = {own.candidate: own for own in worker.evaluate_together(candidates)}
    assert [found[i].status for i in (0, 4, 6)] == ["ok", "failed", "ok"]
    assert "item 3 has no score" in found[4].error
    assert [found[i].objectives["score"] for i in (0, 6)] == [scores[0], scores[2]]


def test_what_fails_for_all_together_is_scored_one_at_a_time(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a kernel does not know this shape")

    worker = Worker(pool, {"search": Logits()}, device="cpu")
    monkeypatch.setattr("evomerge.evaluation.several.AtOnce", broken)
    assert [own.status for own in worker.evaluate_together(some(pool))].count("ok") == 6


def test_memory_that_ends_makes_groups_smaller(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def scarce(module: Any, terms: Any) -> AtOnce:
        sizes.append(len(terms))
        if len(terms) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return AtOnce(module, terms)

    monkeypatch.setattr("evomerge.evaluation.several.AtOnce", scarce)
    worker = Worker(pool, {"search": Logits()}, device="cpu")
    monkeypatch.setattr(worker._resident, "spare_memory", lambda: False)
    found = worker.evaluate_together(some(pool))
    assert [own.status for own in found].count("ok") == 6
    assert sizes[0] == 5
    assert sizes[1:] == [1, 2, 2]


class Recorded:
    """A worker that says how it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def fitness(self, split: Split) -> None:
        pass

    def close(self) -> None:
        pass

    def evaluate(self, candidate: Candidate, split: Split) -> Evaluation:
        self.asked.append([candidate.id])
        return Evaluation(candidate.id, "ok", split)

    def evaluate_together(self, candidates: list[Candidate], split: Split) -> list[Evaluation]:
        self.asked.append([own.id for own in candidates])
        return [Evaluation(own.id, "ok", split) for own in candidates]


def test_an_evaluator_hands_on_what_is_scored_on_the_same_items() -> None:
    worker = Recorded()
    evaluator = LocalEvaluator(lambda **_: worker, adapters_at_once=3)  # type: ignore[arg-type, return-value]
    assert evaluator.slots == 3
    parts = [None, None, None, None, {"t": [0, 1]}, {"t": [0, 1]}, {"t": [2]}]
    for number, part in enumerate(parts):
        evaluator.submit(Candidate(number, None, part=part))
    evaluator.submit(Candidate(7, None, part={"t": [2]}), "held_out")
    evaluator.submit(Candidate(8, None))
    assert [evaluator.collect().candidate for _ in range(8)] == list(range(8))
    assert worker.asked == [[0, 1, 2], [3], [4, 5], [6], [7]]
    assert evaluator.withdraw() == [8]


def test_candidates_that_take_too_long_together_are_told_apart() -> None:
    class Slow(Recorded):
        def evaluate_together(self, candidates: list[Candidate], split: Split) -> list[Evaluation]:
            self.asked.append([own.id for own in candidates])
            while True:
                pass

        def evaluate(self, candidate: Candidate, split: Split) -> Evaluation:
            while candidate.id == 1:
                pass
            return super().evaluate(candidate, split)

    worker = Slow()
    evaluator = LocalEvaluator(lambda **_: worker, adapters_at_once=4, timeout=0.05)  # type: ignore[arg-type, return-value]
    for number in range(3):
        evaluator.submit(Candidate(number, None))
    found = [evaluator.collect() for _ in range(3)]
    assert [own.status for own in found] == ["ok", "failed", "ok"]
    assert "evaluator.timeout=0.05" in found[1].error
    assert worker.asked == [[0, 1, 2], [0], [2]]


@pytest.mark.parametrize("value", [5000, -1, 2.5, True, "many"])
def test_a_number_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="adapters_at_once"):
        LocalEvaluator(lambda **_: None, adapters_at_once=value)  # type: ignore[arg-type, return-value]


def test_other_engines_are_refused() -> None:
    server = {"url": "http://localhost:8000", "model": "m", "adapters": "x"}
    with pytest.raises(ConfigError, match="engine is server; how many requests"):
        EngineSettings.of({"engine": "server", "adapters_at_once": 4, "server": server})
    with pytest.raises(ConfigError, match="workers on Ray score several candidates at once with vLLM only"):
        check_at_once(4, "transformers")


def test_slices_of_other_layers_are_scored_by_themselves(pool: Pool) -> None:
    """A path: nothing of low rank says what it adds to the base."""
    turned = [
        SliceRecipe(s, "passthrough", (Input("math", None if s.layer is None else pool.info.layers - 1 - s.layer),))
        for s in pool.info.slices
    ]
    worker = Worker(pool, {"search": Logits()}, device="cpu")
    candidates = [Candidate(0, pool.info.recipe(turned)), Candidate(1, merged(pool, math=0.3)), *some(pool)[4:]]
    assert SliceId("attn", 0) in pool.info.slices
    assert worker._several is not None
    groups = worker._several.groups(candidates, worker._plan)
    assert [[own.id for own in group.members] for group in groups] == [[1, 4, 5, 6]]
    assert worker.evaluate_together(candidates)[0].ok
