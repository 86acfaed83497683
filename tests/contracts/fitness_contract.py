"""What every fitness must do. A fitness's tests subclass this and supply the fixtures `make` and `load`."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import FitnessError
from evomerge.models.loaded import LoadedModel
from evomerge.protocols import Fitness, Scores

Make = Callable[[], Fitness]
"""Constructs the fitness under test anew: several blocks, and scores that depend on all weights."""

Load = Callable[[], LoadedModel]
"""Loads the same model anew."""


def prepared(make: Make, model: LoadedModel) -> Fitness:
    fitness = make()
    fitness.check()
    fitness.prepare(model)
    return fitness


def perturb(model: LoadedModel, seed: int) -> None:
    """Change every weight in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(noise.to(parameter.dtype), alpha=0.3)


def same(a: Scores, b: Scores) -> bool:
    """Equal in everything but seconds, bit for bit."""
    return (
        dict(a.objectives) == dict(b.objectives)
        and dict(a.metrics) == dict(b.metrics)
        and a.items.keys() == b.items.keys()
        and all(np.array_equal(a.items[key], b.items[key], equal_nan=True) for key in a.items)
    )


class FitnessContract:
    """The tests."""

    def test_names_its_objectives_before_anything_is_loaded(self, make: Make, load: Load) -> None:
        fitness = make()
        names = [objective.name for objective in fitness.objectives]
        assert names
        assert len(set(names)) == len(names)
        model = load()
        fitness.prepare(model)
        assert list(fitness.run(model).objectives) == names

    def test_scores_again_what_it_scored_before(self, make: Make, load: Load) -> None:
        model = load()
        fitness = prepared(make, model)
        first = fitness.run(model)
        perturb(model, 1)
        second = fitness.run(model)
        assert same(second, prepared(make, model).run(model)), "a fresh fitness sees something else"
        assert not same(first, second)
        original = load()
        model.module.load_state_dict(original.module.state_dict())
        assert same(fitness.run(model), first)
        assert same(fitness.run(original), first), "another module with the same weights"

    def test_leaves_the_model_and_the_global_generators_alone(self, make: Make, load: Load) -> None:
        model = load()
        before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
        tokenizer = pickle.dumps(_tokenizer_state(model.tokenizer))
        states = _generators()
        fitness = prepared(make, model)
        fitness.run(model)
        assert _generators() == states
        assert pickle.dumps(_tokenizer_state(model.tokenizer)) == tokenizer
        after = model.module.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    def test_evaluates_without_dropout_whatever_mode_the_model_is_in(self, make: Make, load: Load) -> None:
        model = load()
        fitness = prepared(make, model)
        first = fitness.run(model)
        model.module.train()
        assert same(fitness.run(model), first)

    def test_items_are_per_document_and_finite(self, make: Make, load: Load) -> None:
        model = load()
        fitness = prepared(make, model)
        scores = fitness.run(model)
        documents = {}
        for key, values in scores.items.items():
            assert values.dtype == np.float64
            assert np.isfinite(values).all()
            documents[key.split("/")[0]] = len(values)
        assert documents == dict(fitness.items())
        assert set(scores.seconds) == {"model", "other"}
        assert scores.seconds["model"] > 0

    def test_parts_together_are_the_whole(self, make: Make, load: Load) -> None:
        model = load()
        fitness = prepared(make, model)
        whole = fitness.run(model)
        counts = fitness.items()
        parts = [{task: range(first, count, 2) for task, count in counts.items()} for first in (0, 1)]
        union = {key: np.full_like(values, np.nan) for key, values in whole.items.items()}
        for part in parts:
            found = fitness.run(model, part)
            assert set(found.objectives) == set(whole.objectives)
            for key, values in found.items.items():
                assert len(values) == len(whole.items[key])
                new = np.isfinite(values)
                assert np.flatnonzero(new).tolist() == list(part[key.split("/")[0]])
                union[key][new] = values[new]
            again = fitness.run(model, part)
            assert all(np.array_equal(again.items[key], values, equal_nan=True) for key, values in found.items.items())
        for key, values in whole.items.items():
            np.testing.assert_allclose(union[key], values, rtol=1e-5, atol=1e-5)
        assert same(fitness.run(model), whole)

    def test_refuses_weights_that_are_not_finite(self, make: Make, load: Load) -> None:
        model = load()
        fitness = prepared(make, model)
        expected = fitness.run(model)
        perturbed = load()
        with torch.no_grad():
            next(iter(perturbed.module.parameters())).fill_(float("nan"))
        with pytest.raises(FitnessError, match="finite"):
            fitness.run(perturbed)
        assert same(fitness.run(model), expected), "the failure left something behind"

    def test_needs_to_be_prepared(self, make: Make, load: Load) -> None:
        with pytest.raises(FitnessError, match="prepare"):
            make().run(load())

    def test_fingerprint_is_of_the_items(self, make: Make, load: Load) -> None:
        first, second = prepared(make, load()), prepared(make, load())
        assert first.fingerprint().startswith("sha256:")
        assert first.fingerprint() == second.fingerprint()
        model = load()
        perturb(model, 2)
        assert prepared(make, model).fingerprint() == first.fingerprint(), (
            "weights are the candidate's, not the fitness's"
        )


def _generators() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return random.getstate(), str(numpy_state), torch.get_rng_state().tolist()


def _tokenizer_state(tokenizer: Any) -> tuple[Any, ...]:
    if tokenizer is None:
        return ()
    return tokenizer.pad_token, tokenizer.padding_side, len(tokenizer), str(tokenizer.special_tokens_map)
