"""Raw weights: genomes that are all the weights of a small network, one after the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.genomes.arrays import ArraySpec, numbers
from evomerge.genomes.genome import Genome
from evomerge.recipes.method_spec import MethodSpec
from evomerge.recipes.pool_info import PoolInfo

Array = NDArray[np.float32]


@runtime_checkable
class Seeds(Protocol):
    """Networks that a search starts from."""

    def arrays(self) -> Sequence[Array]:
        """Their flat weights, float32, in the order of the space's tensors."""


class WeightsSpace:
    """Every weight of a network is a gene; there is no recipe, the genome is the model.

    Implements `protocols.SearchSpace` with a `decode` that answers ``None``, for evaluators that score arrays
    (`evomerge.evaluation.direct`). Genomes are `ArrayGenome`, float32.

    Args:
        pool, methods: not used; there is no pool.
        shapes: the network's tensors in flat order: name -> shape.
        bound: every weight lies in ``[-bound, bound]``.
        seeds: networks to start from: a population's first members. None for a start at zero.
        start: where strategies with one starting point start: ``zeros`` or the ``first`` of the seeds.

    Raises:
        ConfigError: no weights, a bad shape or bound, or seeds of another size.
    """

    def __init__(
        self,
        pool: PoolInfo | None,
        methods: Mapping[str, MethodSpec],
        *,
        shapes: Mapping[str, Sequence[int]],
        bound: float = 8.0,
        seeds: Seeds | None = None,
        start: Literal["zeros", "first"] = "zeros",
    ) -> None:
        for name, shape in shapes.items():
            if not shape or min(shape) < 1:
                raise ConfigError(f"search_space.shapes.{name} is {list(shape)}", "one or more sizes of at least 1")
        if not (math.isfinite(bound) and bound > 0):
            raise ConfigError(f"search_space.bound is {bound}", "finite and above 0")
        if start not in ("zeros", "first") or (start == "first" and seeds is None):
            raise ConfigError(f"search_space.start is {start!r}", "zeros, or first where there are seeds")
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        names = [
            f"{name}[{','.join(map(str, index))}]"
            for name, shape in self._shapes.items()
            for index in itertools.product(*map(range, shape))
        ]
        arrays = list(seeds.arrays()) if seeds is not None else []
        for number, array in enumerate(arrays):
            if array.shape != (len(names),):
                raise ConfigError(
                    f"search_space.seeds: network {number} has weights of shape {array.shape}",
                    f"search_space.shapes has {len(names)}",
                )
        self._spec = ArraySpec(names, bound, arrays[0] if start == "first" else None, arrays)

    @property
    def spec(self) -> ArraySpec:
        """The genes: one for every weight, named ``tensor[row,column]``."""
        return self._spec

    def decode(self, genome: Genome) -> None:
        """No recipe: the genome is the model.

        Raises:
            ConfigError: the genome is of another space.
        """
        self._spec.check(genome)

    def tensors(self, genome: Genome) -> dict[str, Array]:
        """The genome's weights by tensor name, in the tensors' shapes."""
        flat = numbers(genome).astype(np.float32)
        tensors, at = {}, 0
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            tensors[name] = flat[at : at + size].reshape(shape)
            at += size
        return tensors
