"""Frank-Wolfe's steps against autograd, and where they lead when the answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM

from evomerge.calibration.encoding import Encoded, Item
from evomerge.calibration.frank_wolfe import Steps, frank_wolfe, groups_of, recipe_of
from evomerge.errors import PoolError
from evomerge.export.writer import write_model
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool

ITEMS: dict[str, list[Item]] = {
    "a": [Encoded((1, 5, 9, 30, 7), 1), Encoded((1, 8, 8, 21), 2)],
    "b": [Encoded((4, 12, 17, 33, 6, 10, 39), 4)],
}


@pytest.fixture
def folders(tiny_model: TinyModel) -> dict[str, Path]:
    return {name: tiny_model(name, seed=seed) for seed, name in enumerate(("base", "a", "b"))}


def opened(folders: dict[str, Path]) -> Pool:
    return open_pool({name: str(folder) for name, folder in folders.items()}, base="base", dtype="float32")


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    """The mean over sources of that over items, by transformers and autograd alone."""
    total = torch.zeros(())
    for own in ITEMS.values():
        for item in own:
            assert isinstance(item, Encoded)
            chances = model(torch.tensor([item.ids])).logits[0].log_softmax(-1)
            told = [chances[t - 1, item.ids[t]] for t in range(item.start, len(item.ids))]
            total = total - torch.stack(told).mean() / len(own) / len(ITEMS)
    return total


@pytest.mark.parametrize("granularity", ["layer", "task"])
def test_a_step_goes_where_the_gradient_says(folders: dict[str, Path], granularity: str) -> None:
    pool = opened(folders)
    groups = groups_of(pool, granularity)
    assert len(groups) == {"layer": 4, "task": 1}[granularity]
    found = frank_wolfe(pool, ITEMS, groups, iterations=1, step=0.25)
    states = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
    model = AutoModelForCausalLM.from_pretrained(folders["base"]).eval()
    model.load_state_dict({name: (x + states["b"][name]) / 2 for name, x in states["a"].items()})
    loss = loss_of(model)
    loss.backward()
    assert found.losses[0] == pytest.approx(loss.item(), rel=1e-5)
    gap = 0.0
    for group, chosen, weights in zip(groups, found.chosen[0], found.weights, strict=True):
        names = [name for slice_ in group for name in pool.layout.tensors[slice_]]
        gradients = {name: p.grad for name, p in model.named_parameters() if name in names and p.grad is not None}
        products = [sum(float((g * states[k][n]).double().sum()) for n, g in gradients.items()) for k in "ab"]
        assert chosen == int(products[1] < products[0])
        gap += sum(products) / 2 - min(products)
        assert weights == pytest.approx((0.375, 0.625) if chosen else (0.625, 0.375))
    assert found.gaps[0] == pytest.approx(gap, rel=1e-3)


def test_it_finds_the_source_that_is_right(folders: dict[str, Path]) -> None:
    """One is the base moved down its gradient, the other up it: steps lead to the one."""
    model = AutoModelForCausalLM.from_pretrained(folders["base"]).eval()
    loss_of(model).backward()
    for name, sign in (("a", -1), ("b", 1)):
        moved = {n: p.detach() + sign * 0.1 * p.grad for n, p in model.named_parameters() if p.grad is not None}
        save_file(moved, folders[name] / "model.safetensors", metadata={"format": "pt"})
    pool = opened(folders)
    groups = groups_of(pool, "layer")
    found = frank_wolfe(pool, ITEMS, groups, iterations=4, step=0.3, start="base")
    assert found.chosen == ((0, 0, 0, 0),) * 4
    assert all(weights == pytest.approx((1 - 0.7**4, 0)) for weights in found.weights)
    assert list(found.losses) == sorted(found.losses, reverse=True)
    assert found.losses[-1] < found.losses[0] - 0.01
    assert frank_wolfe(pool, ITEMS, groups, iterations=4, step=0.3, start="base") == found


def test_the_recipe_is_the_merge_whose_loss_it_says(folders: dict[str, Path], tmp_path: Path) -> None:
    pool = opened(folders)
    groups = groups_of(pool, "layer")
    found = frank_wolfe(pool, ITEMS, groups, iterations=2, start="base")
    recipe = recipe_of(pool, groups, found.weights)
    assert {entry.method for entry in recipe.slices} == {"task_arithmetic"}
    model = AutoModelForCausalLM.from_pretrained(write_model(recipe, pool, tmp_path / "merged")).eval()
    with torch.no_grad():
        assert float(loss_of(model)) == pytest.approx(found.losses[-1], rel=1e-4)
    plain = open_pool({name: str(folders[name]) for name in "ab"}, dtype="float32")
    halves = Steps(((0.5, 0.5),), (), (), ())
    made = recipe_of(plain, groups_of(plain, "task"), halves.weights)
    assert {entry.method for entry in made.slices} == {"linear"}


def test_numbers_that_are_none_are_named(folders: dict[str, Path]) -> None:
    state = load_file(folders["a"] / "model.safetensors")
    state["lm_head.weight"][0, 0] = torch.inf
    save_file(state, folders["a"] / "model.safetensors", metadata={"format": "pt"})
    pool = opened(folders)
    with pytest.raises(PoolError, match="the loss of the merge is"):
        frank_wolfe(pool, ITEMS, groups_of(pool, "task"), iterations=1)
