"""Data flow search where the answer is known: `python scripts/benchmark_data_flow.py [--seeds 3] [--model FOLDER]`.

A small Llama that sorts, trained here or the demo pool's ``math``, is taken apart in two ways:

- ``damaged``: two copies, each with layers replaced by random ones that the other has whole;
- ``hidden``: one copy without two of its layers, which lie between random layers of a second model.

The search sees both models of a pool and the score of a path, the geometric mean of the probabilities of the right
answers' words. It has recovered the model when a path scores within 2 % of the undamaged one. CatCMA on boolean
indicators is shown beside the paper's relaxation, separable CMA-ES on continuous indicators with threshold 0.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from evomerge.candidate import Candidate, Evaluation
from evomerge.demo.items import Texts, sorting_questions
from evomerge.demo.train import Batch, Stage, draw, new_model, pack, train
from evomerge.errors import InfeasibleError
from evomerge.genome import Genome
from evomerge.protocols import Objective, Strategy
from evomerge.recipe import LAYER_COMPONENTS, ModelRef, PoolInfo, Recipe, SliceId
from evomerge.strategies.catcma import CatCma
from evomerge.strategies.cma_es import CmaEs
from search_spaces.data_flow import DataFlowSpace

Layers = Sequence[torch.nn.Module]

EVALUATIONS = 1500
RECOVERED = 0.98  # of the undamaged model's score
REPEATS = 2
SORTING = {"sort": 1.0, "simple": 1.0}
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

    A path is run by putting its layers, as they are, into one shell of the model; equal paths are run once.
    """

    def __init__(self, pool: Constructed, batch: Batch) -> None:
        self._pool, self._batch = pool, batch
        self._shell = copy.copy(pool.whole.model)
        self._shell._modules = dict(pool.whole.model._modules)
        self._shell.config = copy.copy(pool.whole.config)
        self._known: dict[tuple[tuple[str, int], ...], float] = {}
        self.whole = self._run(list(pool.whole.model.layers))

    def __call__(self, recipe: Recipe) -> float:
        """The score of a recipe that is a path."""
        steps = [e for e in recipe.slices if e.slice.component == "attn"]
        path = tuple((e.inputs[0].model, e.inputs[0].layer or 0) for e in steps)
        if path not in self._known:
            self._known[path] = self._run([self._pool.models[model][layer] for model, layer in path])
        return self._known[path]

    def of(self, model: str) -> float:
        """The score of one model of the pool."""
        return self._run(self._pool.models[model])

    def _run(self, layers: Layers) -> float:
        shell, batch = self._shell, self._batch
        shell.layers = torch.nn.ModuleList(layers)
        shell.config.num_hidden_layers = len(layers)
        with torch.inference_mode():
            states = shell(
                input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
            ).last_hidden_state
            learnt = batch.targets >= 0
            loss = functional.cross_entropy(self._pool.whole.lm_head(states[learnt]), batch.targets[learnt])
        return float(torch.exp(-loss))


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


def catcma(pool: Constructed, seed: int, **settings: Any) -> tuple[DataFlowSpace, Strategy]:
    """Boolean indicators and CatCMA."""
    space = DataFlowSpace(pool.info, {}, repeats=REPEATS, scales="none")
    return space, CatCma(space.spec, [Objective("score")], seed=seed, **settings)


def relaxed(pool: Constructed, seed: int) -> tuple[DataFlowSpace, Strategy]:
    """Continuous indicators and separable CMA-ES: a slot is taken above 0."""
    space = DataFlowSpace(pool.info, {}, repeats=REPEATS, scales="none", relaxed=True)
    return space, CmaEs(space.spec, [Objective("score")], seed=seed, separable=True)


POOLS: Mapping[str, Callable[[Any], Constructed]] = {
    "damaged": lambda whole: damaged(whole, (2, 3), (0, 1, 4)),
    "hidden": lambda whole: hidden(whole, (2, 3), (1, 4)),
}
STRATEGIES = {"catcma": catcma, "relaxation": relaxed}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and print a line per search; 1 when CatCMA did not recover a model."""
    parser = argparse.ArgumentParser(description="Search paths through pools whose answer is known.")
    parser.add_argument("--seeds", type=int, default=3, help="searches per pool and strategy (default: 3)")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the undamaged model (default: 400)")
    parser.add_argument("--model", type=Path, help="folder of a trained model of the demo's vocabulary")
    parser.add_argument("--items", type=int, default=32, help="questions that a path is scored on (default: 32)")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    whole = AutoModelForCausalLM.from_pretrained(given.model).eval() if given.model else trained(given.steps)
    batch = questions(given.items, {"sort": 1.0})
    print(f"{len(whole.model.layers)} layers ready after {time.perf_counter() - began:.0f} s", flush=True)
    failed = 0
    for kind, build in POOLS.items():
        pool = build(whole)
        score = Scorer(pool, batch)
        parts = ", ".join(f"{name} {score.of(name):.3f}" for name in pool.models)
        print(f"{kind}: undamaged {score.whole:.3f}, {parts}", flush=True)
        for name, make in STRATEGIES.items():
            for seed in range(given.seeds):
                began = time.perf_counter()
                best, evaluations, _ = search(*make(pool, seed), score)
                recovered = best >= RECOVERED * score.whole
                failed += name == "catcma" and not recovered
                seconds = time.perf_counter() - began
                verdict = "recovered" if recovered else "not recovered"
                share = f"{best / score.whole:6.1%} after {evaluations:4d} evaluations"
                print(f"  {name:10s} seed {seed}: {share}, {verdict} ({seconds:.0f} s)", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
