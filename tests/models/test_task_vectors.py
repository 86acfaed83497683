"""Lengths and angles of task vectors, against weights set by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel

from evomerge.errors import PoolError
from evomerge.models import task_vectors
from evomerge.models.opening import open_pool
from evomerge.models.task_vectors import differences_of
from evomerge.recipes.differences import Differences
from evomerge.recipes.slices import SliceId

NORM = "model.norm.weight"  # of 16 numbers, a slice of its own
Q, K = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")


def moved(tiny_model: TinyModel, name: str, **changes: float) -> Path:
    """The base (seed 0) with single elements of tensors moved."""
    folder = tiny_model(name, seed=0, dtype="float32")
    weights = load_file(folder / "model.safetensors")
    weights[NORM][:] = 2.0
    for tensor in (Q, K):
        weights[tensor].flatten()[:] = 0
        weights[tensor][:] = 0
    for place, (tensor, at) in {"norm0": (NORM, 0), "norm1": (NORM, 1), "q": (Q, 0), "k": (K, 5)}.items():
        weights[tensor].view(-1)[at] += changes.get(place, 0.0)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def models(tiny_model: TinyModel) -> dict[str, str]:
    return {
        "base": str(moved(tiny_model, "base")),
        "math": str(moved(tiny_model, "math", norm0=3.0, norm1=4.0, q=1.0)),
        "code": str(moved(tiny_model, "code", norm0=3.0, k=2.0)),
    }


def test_norms_and_angles_are_those_of_the_weights(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """final_norm: base 16 twos; math moves by (3, 4), code by (3, 0). Layer 1's attention: orthogonal, 1 and 2."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(task_vectors, "_BLOCK", 7)
    seen: list[tuple[int, int]] = []
    found = differences_of(open_pool(models, "base"), lambda done, total: seen.append((done, total)))
    assert found.models == ("math", "code")
    norm, attention = found.slices.index(SliceId("final_norm")), found.slices.index(SliceId("attn", 1))
    np.testing.assert_allclose(found.products[norm], [[25, 9], [9, 9]])
    np.testing.assert_allclose(found.products[attention], [[1, 0], [0, 4]])
    assert found.base[norm] == pytest.approx(16 * 4)
    assert found.products[found.slices.index(SliceId("embed"))].tolist() == [[0, 0], [0, 0]]
    assert seen == [(number + 1, len(found.slices)) for number in range(len(found.slices))]
    assert found.shift("math", [(SliceId("final_norm"), 1.0)]) == pytest.approx(5 / 8)
    assert found.cosines("math", [(SliceId("final_norm"), 1.0)]) == {"code": pytest.approx(9 / 15)}


def test_what_is_known_is_not_read_again(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = differences_of(open_pool(models, "base"))
    monkeypatch.setattr("evomerge.models.pool.Pool.read", lambda *args: 1 / 0)
    renamed = {"base": models["base"], "sums": models["math"], "text": models["code"]}
    again = differences_of(open_pool(renamed, "base"))
    assert again.models == ("sums", "text")
    np.testing.assert_array_equal(again.products, first.products)
    np.testing.assert_array_equal(again.base, first.base)
    swapped = {"base": models["base"], "code": models["code"], "math": models["math"]}
    with pytest.raises(ZeroDivisionError):
        differences_of(open_pool(swapped, "base"))
    (kept,) = (tmp_path / "cache" / "evomerge" / "differences").glob("*.json")
    for damage in ("{", '{"base": [1], "products": []}', kept.read_text().replace("25.0", "NaN")):
        kept.write_text(damage)
        with pytest.raises(ZeroDivisionError):
            differences_of(open_pool(models, "base"))


def test_a_pool_without_a_base_has_none(models: dict[str, str]) -> None:
    del models["base"]
    with pytest.raises(PoolError, match=r"set pool\.base"):
        differences_of(open_pool(models))


def test_slopes_weigh_slices() -> None:
    """Two slices, 1 and 4 long in the base (squared), moved by 9 and 16 (squared): of slopes 1 and 1/2."""
    slices = (SliceId("attn", 0), SliceId("attn", 1))
    products = np.array([[[9.0, 0.0], [0.0, 1.0]], [[16.0, -8.0], [-8.0, 16.0]]])
    known = Differences(("a", "b"), slices, np.array([1.0, 4.0]), products)
    slopes = [(slices[0], 1.0), (slices[1], 0.5)]
    assert known.shift("a", slopes) == pytest.approx(math.sqrt((9 + 0.25 * 16) / 5))
    assert known.cosines("a", slopes) == {"b": pytest.approx(-2 / math.sqrt(13 * 5))}
    assert known.cosines("b", slopes) == {"a": pytest.approx(-2 / math.sqrt(13 * 5))}
    still = Differences(("a", "b"), slices, np.zeros(2), np.zeros((2, 2, 2)))
    assert (still.shift("a", slopes), still.cosines("a", slopes)) == (0.0, {"b": 0.0})
