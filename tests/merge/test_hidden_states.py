"""Keys of hidden states: equal ones mean equal states, whatever candidates a search makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merge.candidate_walks import walk
from merge.path_models import KINDS, open_sources, path_recipe, random_path
from models.architectures import save_pool

from evomerge.errors import PoolError
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident import model as resident_model
from evomerge.merge.resident.hidden_states import hidden_keys
from evomerge.merge.resident.model import Resident
from evomerge.models.architecture.stacks import find_layers
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.objectives import Objective
from evomerge.recipes.recipe import Recipe
from evomerge.strategies.m2n2 import M2N2
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.shared_forwards import BatchLimits, SharedForwards

REQUESTS = [TokenRequest(None, [5, 9, 31, 7, 12, *more], [3, 17, 26][: len(more)]) for more in ([2], [4, 6], [8, 1, 3])]


class Scored:
    """Scores recipes by a resident model that keeps hidden states, and by one that keeps none."""

    def __init__(self, pool: Pool, **options: Any) -> None:
        self.pool, self.saved, self.tokens = pool, 0.0, 0
        self.with_states, self.without = Resident(pool, **options), Resident(pool, states=0)
        assert self.without.model.states is None
        self._forwards = [
            SharedForwards(
                REQUESTS, each.model.module, max_length=31, limits=BatchLimits(256), softmax_dtype=torch.float32
            )
            for each in (self.with_states, self.without)
        ]

    def __call__(self, recipe: Recipe) -> None:
        plan = make_plan(recipe, self.pool)
        found = []
        for each, forwards in zip((self.with_states, self.without), self._forwards, strict=True):
            each.apply(plan)
            found.append(forwards.score(each.model.module, states=each.model.states)[0])
            self.saved += forwards.hidden
        self.tokens += self._forwards[0].tokens
        np.testing.assert_array_equal(*found)


def opened(kind: str, root: Path, dtype: str = "float32") -> Pool:
    depth = {"n_layer" if kind == "gpt2" else "num_hidden_layers": 3}
    folders = save_pool(kind, root / "models", dtype=dtype, **depth)
    return open_pool({name: str(folder) for name, folder in folders.items()}, base="base")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"), [("llama", "float32"), ("llama_tied", "bfloat16"), ("gpt2", "float32"), ("mixtral", "bfloat16")]
)
def test_walks_score_alike_with_and_without(tmp_path: Path, kind: str, dtype: str) -> None:
    scored = Scored(opened(kind, tmp_path, dtype))
    for recipe in walk(scored.pool, np.random.default_rng(0), 16):
        scored(recipe)
    assert scored.saved > 0.1 * scored.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_paths_score_alike_with_and_without(tmp_path: Path, kind: str) -> None:
    scored = Scored(open_sources(tmp_path, kind))
    rng = np.random.default_rng(0)
    paths = [random_path(rng, 5)]
    for _ in range(10):
        one = list(paths[int(rng.integers(len(paths)))])
        place = int(rng.integers(len(one)))
        paths.append([*one[:place], *random_path(rng, int(rng.integers(1, 6 - place)))])
    for path in paths:
        scored(path_recipe(scored.pool, path))
    assert scored.saved > 0.2 * scored.tokens


def test_lineages_score_alike_with_and_without(llamas: Callable[..., dict[str, Path]]) -> None:
    from evomerge.candidate import Candidate, Evaluation
    from evomerge.merge.methods import specs
    from search_spaces.lineage import LineageSpace

    pool = open_pool({name: str(folder) for name, folder in llamas().items()}, "base")
    space = LineageSpace(pool.info, specs(), mix={"high": 0.0})  # the first parent's layers, then the second's
    strategy = M2N2(space.spec, (Objective("score"),), seed=1, size=6)
    scored, rng = Scored(pool), np.random.default_rng(0)
    for number in range(20):
        for proposal in strategy.ask():
            recipe = space.decode(proposal.genome)
            scored(recipe)
            items = rng.random(4)
            evaluation = Evaluation(number, "ok", objectives={"score": items.mean()}, items={"toy/x": items})
            strategy.tell(Candidate(number, recipe, proposal.genome, proposal.parents), evaluation)
    assert scored.saved > 0.25 * scored.tokens


def streams(resident: Resident, ids: torch.Tensor) -> list[bytes]:
    """The hidden states before each layer and after the last."""
    layers, found = list(find_layers(resident.model.module)[1]), list[torch.Tensor]()
    hooks: list[Any] = []
    for layer in layers:
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _, args, kw: found.append((*args, *kw.values())[0].clone()), with_kwargs=True
            )
        )
    hooks.append(
        layers[-1].register_forward_hook(lambda _, __, out: found.append(out if torch.is_tensor(out) else out[0]))
    )
    with torch.no_grad():
        resident.model.module(ids)
    for hook in hooks:
        hook.remove()
    return [each.numpy().tobytes() for each in found]


def all_kinds_of(pool: Pool) -> Iterable[Recipe]:
    rng = np.random.default_rng(1)
    path = random_path(rng, 4)
    for place in range(4):
        model, layer, factor = path[place]
        for other in (
            (model, layer, -factor),
            (model, layer, 1.0),
            (model, (layer + 1) % 4, factor),
            ("b", layer, factor),
        ):
            yield path_recipe(pool, [*path[:place], other, *path[place + 1 :]])
    yield path_recipe(pool, path[:2])
    yield pool.info.linear({"a": 1.0})
    yield pool.info.linear({"a": 0.5, "b": 0.5})


def test_equal_keys_are_equal_states_and_others_differ(tmp_path: Path) -> None:
    pool = open_sources(tmp_path, "llama")
    resident = Resident(pool)
    ids = torch.tensor([[5, 9, 31, 7, 12, 22]])
    of_key: dict[str, bytes] = {}
    for recipe in all_kinds_of(pool):
        plan = make_plan(recipe, pool)
        resident.apply(plan)
        keys = resident._states.keys
        assert list(keys) == hidden_keys(plan)
        for key, state in zip(keys, streams(resident, ids), strict=True):
            assert of_key.setdefault(key, state) == state
    assert len(set(of_key.values())) == len(of_key) > 40


def test_a_merge_that_fails_leaves_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = opened("llama", tmp_path)
    resident = Resident(pool)
    resident.apply(make_plan(pool.info.linear({"a": 1.0}), pool))
    assert len(resident._states.keys) == 4

    def fails(*_: Any) -> Any:
        raise PoolError("the disk went away")

    monkeypatch.setattr(resident_model, "merge_slices", fails)
    with pytest.raises(PoolError):
        resident.apply(make_plan(pool.info.linear({"a": 0.5, "b": 0.5}), pool))
    assert resident._states.keys == ()


def test_memory_that_has_run_out_takes_states_first(tmp_path: Path) -> None:
    pool = opened("llama", tmp_path)
    resident = Resident(pool, states=1000)
    states = resident._states
    states.put("a", [torch.zeros(100)], 1.0)
    states.put("b", [torch.zeros(200)], 1.0)
    assert states.used == 800  # both would be more than there may be
    assert resident.spare_memory()
    assert (states.used, states.budget) == (0, 500)
