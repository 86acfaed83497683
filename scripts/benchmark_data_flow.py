"""Data flow search where the answer is known: `python scripts/benchmark_data_flow.py [--model FOLDER] [--quick]`.

A small Llama is taken apart in two ways. It sorts (trained here, or the demo pool's ``math``), or with ``--quick`` it
is random and right by definition.

- ``damaged``: two copies, each with layers replaced by random ones that the other has whole;
- ``hidden``: one copy without two of its layers, which lie between random layers of a second model, in the wrong
  order.

The search sees both models of a pool and the score of a path, the geometric mean of the probabilities of the right
answers' words. It has recovered the model when a path scores within 2 % of the undamaged one. CatCMA on boolean
indicators is shown beside the paper's relaxation, separable CMA-ES on continuous indicators with threshold 0, each
with slots layer by layer and with slots in the paper's order, one model after another.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from evomerge.candidate import Candidate, Evaluation
from evomerge.demo.items import Texts, sorting_questions
from evomerge.demo.languages import VOCABULARY
from evomerge.demo.train import WIDTH, Batch, Stage, draw, new_model, pack, train
from evomerge.errors import InfeasibleError
from evomerge.genomes.genome import Genome
from evomerge.objectives import Objective
from evomerge.protocols import Strategy
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import LAYER_COMPONENTS, ModelRef, SliceId
from evomerge.strategies.catcma import CatCma
from evomerge.strategies.cma_es import CmaEs
from search_spaces.data_flow import ORDERS, DataFlowSpace

Layers = Sequence[torch.nn.Module]
Steps = tuple[tuple[str, int], ...]

EVALUATIONS = 1500
RECOVERED = 0.98  # of the undamaged model's score
REPEATS = 2
WHOLE = ""  # the undamaged model, in a path
PREFIXES = 2000  # whose hidden states are kept
SORTING = {"sort": 1.0, "simple": 1.0}
SHARPNESS = 4.0  # of the random model
ASKED = 0.25  # the share of its words that paths are scored on
TEXTS = Texts(sorting_questions(), frozenset())


@dataclass(frozen=True)
class Constructed:
    """A pool whose answer is known: the undamaged model, and the layers of the models that the search sees."""

    whole: Any
    models: Mapping[str, Layers]

    @property
    def info(self) -> PoolInfo:
        """The pool as search spaces see it."""
        depths = {name: len(layers) for name, layers in self.models.items()}
        layers = depths[next(iter(depths))]
        inner = [SliceId(component, layer) for layer in range(layers) for component in LAYER_COMPONENTS]
        return PoolInfo(
            tuple((name, ModelRef(name)) for name in self.models),
            tuple(self.models),
            None,
            (SliceId("embed"), *inner, SliceId("final_norm")),
            layers,
            "float32",
            tuple((name, depth) for name, depth in depths.items() if depth != layers),
        )


def trained(steps: int, mixture: Mapping[str, float] = SORTING, seed: int = 0) -> Any:
    """A Llama of the demo's shape that answers E questions, after `steps` of training."""
    model = new_model(seed)
    train(model, Stage("whole", None, steps, 3e-3, mixture), TEXTS, np.random.default_rng(seed), lambda: None)
    return model


def questions(count: int, mixture: Mapping[str, float] = SORTING) -> Batch:
    """What paths are scored on."""
    return pack(draw(TEXTS, mixture, count, np.random.default_rng(1)))


def oracle(seed: int = 0, rows: int = 8) -> tuple[Any, Batch]:
    """A random model of the demo's shape, and a batch in which the words that it is surest of are the right ones.

    A model that does something without training: every one of its layers matters to its answers.
    """
    model = new_model(seed).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        model.model.norm.weight.mul_(SHARPNESS)
    ids = torch.from_numpy(rng.integers(len(VOCABULARY), size=(rows, WIDTH)))
    positions = torch.arange(WIDTH).expand(rows, WIDTH)
    mask = torch.from_numpy(np.where(np.tri(WIDTH, dtype=bool), np.float32(0), np.float32(-1e9)))
    with torch.inference_mode():
        sure, answers = model(input_ids=ids, use_cache=False).logits.softmax(-1).max(-1)
    asked = torch.where(sure < sure.quantile(1 - ASKED), -100, answers)
    return model, Batch(ids, positions, asked, mask.expand(rows, 1, -1, -1))


def damaged(whole: Any, first: Sequence[int], second: Sequence[int]) -> Constructed:
    """Two copies, with these layers random in the first and those in the second."""
    layers = list(whole.model.layers)
    return Constructed(
        whole,
        {
            "one": [_random(layer, i) if i in first else layer for i, layer in enumerate(layers)],
            "two": [_random(layer, 100 + i) if i in second else layer for i, layer in enumerate(layers)],
        },
    )


def hidden(whole: Any, removed: Sequence[int], places: Sequence[int]) -> Constructed:
    """One copy without the `removed` layers; they lie in `places` of a second model, whose other layers are random."""
    layers = list(whole.model.layers)
    second = [_random(layer, 200 + i) for i, layer in enumerate(layers)]
    for layer, place in zip(removed, places, strict=True):
        second[place] = layers[layer]
    return Constructed(whole, {"one": [own for i, own in enumerate(layers) if i not in removed], "two": second})


def _random(layer: torch.nn.Module, seed: int) -> torch.nn.Module:
    """A layer of the same shape whose matrices have the same spread and nothing else of the original."""
    made = copy.deepcopy(layer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.std())
    return made


class Scorer:
    """Scores paths by the geometric mean of the probabilities that a model gives to the right words.

    Equal paths are run once, and paths that begin alike share what they have in common.
    """

    def __init__(self, pool: Constructed, batch: Batch) -> None:
        self._pool, self._batch = pool, batch
        with torch.inference_mode():
            self._start: torch.Tensor = pool.whole.model.embed_tokens(batch.ids)
            self._rotary = pool.whole.model.rotary_emb(self._start, batch.positions)
        self._states = lru_cache(PREFIXES)(self._run)
        self._known: dict[Steps, float] = {}
        self.whole = self._score(tuple((WHOLE, layer) for layer in range(len(pool.whole.model.layers))))

    def __call__(self, recipe: Recipe) -> float:
        """The score of a recipe that is a path."""
        return self._score(tuple(_steps(recipe)))

    def of(self, model: str) -> float:
        """The score of one model of the pool."""
        return self._score(tuple((model, layer) for layer in range(len(self._pool.models[model]))))

    def _score(self, path: Steps) -> float:
        if path not in self._known:
            whole, targets = self._pool.whole, self._batch.targets
            with torch.inference_mode():
                states = whole.model.norm(self._states(path)[targets >= 0])
                loss = functional.cross_entropy(whole.lm_head(states), targets[targets >= 0])
            self._known[path] = float(torch.exp(-loss))
        return self._known[path]

    def _run(self, path: Steps) -> torch.Tensor:
        """Hidden states at the end of a path; called through `_states`, which keeps those of the latest paths."""
        if not path:
            return self._start
        model, layer = path[-1]
        layers = self._pool.whole.model.layers if model == WHOLE else self._pool.models[model]
        before: torch.Tensor = self._states(path[:-1])
        after: torch.Tensor = layers[layer](before, attention_mask=self._batch.mask, position_embeddings=self._rotary)
        return after


def _steps(recipe: Recipe) -> Iterator[tuple[str, int]]:
    for entry in recipe.slices:
        if entry.slice.component == "attn" and entry.slice.layer is not None:
            (source,) = entry.inputs
            yield source.model, entry.slice.layer if source.layer is None else source.layer


def search(
    space: DataFlowSpace, strategy: Strategy, score: Scorer, evaluations: int = EVALUATIONS
) -> tuple[float, int, Genome | None]:
    """The best score, how many evaluations it took until the model was recovered (or all), and the best genome."""
    best, found, number = -1.0, None, 0
    while number < evaluations and best < RECOVERED * score.whole:
        for proposal in strategy.ask():
            try:
                recipe = space.decode(proposal.genome)
                value = score(recipe)
                outcome = Evaluation(number, "ok", objectives={"score": value})
            except InfeasibleError as error:
                recipe, value, outcome = None, -1.0, Evaluation(number, "infeasible", error=str(error))
            strategy.tell(Candidate(number, recipe, proposal.genome), outcome)
            number += 1
            if value > best and number <= evaluations:
                best, found = value, proposal.genome
            if best >= RECOVERED * score.whole:
                break
    return best, min(number, evaluations), found


def catcma(pool: Constructed, order: str, seed: int, **settings: Any) -> tuple[DataFlowSpace, Strategy]:
    """Boolean indicators and CatCMA."""
    space = DataFlowSpace(pool.info, {}, order=order, repeats=REPEATS, scales="none")
    return space, CatCma(space.spec, [Objective("score")], seed=seed, **settings)


def relaxed(pool: Constructed, order: str, seed: int, **settings: Any) -> tuple[DataFlowSpace, Strategy]:
    """Continuous indicators and separable CMA-ES: a slot is taken above 0."""
    space = DataFlowSpace(pool.info, {}, order=order, repeats=REPEATS, scales="none", relaxed=True)
    return space, CmaEs(space.spec, [Objective("score")], seed=seed, separable=True, **settings)


POOLS: Mapping[str, Callable[[Any], Constructed]] = {
    "damaged": lambda whole: damaged(whole, (1, 3), (0, 2, 4, 5)),
    "hidden": lambda whole: hidden(whole, (1, 3), (4, 1)),
}
STRATEGIES = {"catcma": catcma, "relaxation": relaxed}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and print a row per search; 1 when CatCMA, layer by layer, did not recover a model."""
    parser = argparse.ArgumentParser(description="Search paths through pools whose answer is known.")
    parser.add_argument("--seeds", type=int, default=3, help="searches per pool, order and strategy (default: 3)")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the undamaged model (default: 400)")
    parser.add_argument("--model", type=Path, help="folder of a trained model of the demo's vocabulary")
    parser.add_argument("--quick", action="store_true", help="a random model that is right by definition")
    parser.add_argument("--items", type=int, default=16, help="questions that a path is scored on (default: 16)")
    parser.add_argument("--start", type=float, help="probability of what CatCMA starts from; its default")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a path is too small a task for several
    if given.quick:
        whole, batch = oracle()
    else:
        whole = AutoModelForCausalLM.from_pretrained(given.model).eval() if given.model else trained(given.steps)
        batch = questions(given.items, {"sort": 1.0})
    settings = {} if given.start is None else {"start": given.start}
    failed = 0
    for kind, build in POOLS.items():
        pool = build(whole)
        score = Scorer(pool, batch)
        parts = ", ".join(f"{name} {score.of(name):.3f}" for name in pool.models)
        print(f"{kind}: undamaged {score.whole:.3f}, {parts}", flush=True)
        # In two repeats of one model after the other there is no path that has the random model's layers in order.
        for order in ORDERS[:1] if given.quick else ORDERS:
            for name, make in STRATEGIES.items():
                for seed in range(given.seeds):
                    searcher = make(pool, order, seed, **(settings if name == "catcma" else {}))
                    best, evaluations, _ = search(*searcher, score)
                    recovered = best >= RECOVERED * score.whole
                    failed += order == ORDERS[0] and name == "catcma" and not recovered
                    verdict = "recovered" if recovered else "not recovered"
                    share = f"{best / score.whole:6.1%} after {evaluations:4d} evaluations"
                    print(f"  order={order} {name:10s} seed {seed}: {share}, {verdict}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
