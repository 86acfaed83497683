"""The search space of raw weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from evomerge.errors import ConfigError
from search_spaces.weights import WeightsSpace

SHAPES = {"W": [2, 3], "b": [3]}


class Given:
    """Seeds that are given."""

    def __init__(self, *arrays: Sequence[float]) -> None:
        self._arrays = [np.array(array, np.float32) for array in arrays]

    def arrays(self) -> list[np.ndarray]:
        return self._arrays


def space(shapes: Mapping[str, Sequence[int]] = SHAPES, **settings: object) -> WeightsSpace:
    return WeightsSpace(None, {}, shapes=shapes, **settings)  # type: ignore[arg-type]


def test_every_weight_is_a_gene_in_flat_order() -> None:
    names = [gene.name for gene in space().spec]
    assert names[:4] == ["W[0,0]", "W[0,1]", "W[0,2]", "W[1,0]"]
    assert names[6:] == ["b[0]", "b[1]", "b[2]"]


def test_a_genome_is_the_model_and_has_no_recipe() -> None:
    ours = space()
    genome = ours.spec.genome(list(range(9)))
    assert ours.decode(genome) is None
    tensors = ours.tensors(genome)
    assert tensors["W"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["b"].tolist() == [6, 7, 8]


def test_genomes_of_other_spaces_are_refused() -> None:
    with pytest.raises(ConfigError, match="9 genes"):
        space().decode(space({"b": [3]}).spec.initial)


def test_the_start_is_zero_or_the_first_seed() -> None:
    seeds = Given(range(9), [-1.0] * 9)
    assert space(seeds=seeds, start="zeros").spec.initial.array.tolist() == [0.0] * 9
    assert space(seeds=seeds, start="first").spec.initial.array.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert len(space(seeds=seeds).spec.seeds) == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bound": 0.0}, "bound"),
        ({"bound": float("inf")}, "bound"),
        ({"shapes": {"W": []}}, "shapes.W"),
        ({"shapes": {"W": [3, 0]}}, "shapes.W"),
        ({"shapes": {}}, "no genes"),
        ({"start": "first"}, "start"),
        ({"start": "middle"}, "start"),
        ({"seeds": Given([1.0, 2.0])}, "network 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        space(**settings)  # type: ignore[arg-type]
