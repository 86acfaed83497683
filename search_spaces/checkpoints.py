"""Linear combinations of a training run's checkpoints (LCSC, arXiv 2404.02241)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.genomes.coefficients import moving_average, summing_to_one
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.recipes.method_spec import MethodSpec
from evomerge.recipes.pool_info import UNIFORM, PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import COMPONENTS, Input, SliceId, SliceRecipe
from search_spaces.groups import component_lists, layer_groups

KEY = "search_space"
RATES = (0.5, 0.7, 0.8, 0.9, 0.95)

Array = NDArray[np.float64]


class CoefficientSpace:
    """A coefficient for every checkpoint of a series; they sum to one, and may be negative.

    The genes are the coefficients of all checkpoints but the first, ``GROUP/NAME/weight``, once for every group;
    `evomerge.genomes.coefficients.summing_to_one` makes all of them. There are no recipes: `decode` answers ``None``,
    for evaluators whose fitness makes the combination itself (`coefficients`).

    Args:
        pool, methods: not used; there is no pool.
        names: of the checkpoints, in the order of the training; two or more.
        cap: the largest magnitude of a coefficient, 1 or more. Averages and the last checkpoint need 1, the step from
            one checkpoint over another on to twice as far 2. What large coefficients of both signs leave of each
            other is rounding and what the search items happen to like: results with magnitudes above 6 have been
            found to depend on the seed.
        rates: of exponential moving averages that a search starts from, beside the last checkpoint and the uniform
            average.
        spread: of first candidates around their start: the standard deviation of a coefficient, in units of ``1 / n``,
            which coefficients of n checkpoints are on average. 1 doubles what the uniform average leaves of the
            checkpoints' noise.

    Attributes:
        spec: the genes, which start at the moving average in the middle of `rates`.
        starts: genomes by name: the last checkpoint, the uniform average, and ``EMA rate`` for each rate.

    Raises:
        ConfigError: anything of the above that cannot be; names the key.

    >>> space = CoefficientSpace(None, {}, names=["step-1", "step-2", "step-3"])
    >>> [gene.name for gene in space.spec]
    ['model/step-2/weight', 'model/step-3/weight']
    >>> space.coefficients(Genome((-0.5, 1.25)))["model"].tolist()
    [0.25, -0.5, 1.25]
    """

    def __init__(
        self,
        pool: PoolInfo | None,
        methods: Mapping[str, MethodSpec],
        *,
        names: Sequence[str],
        cap: float = 2.0,
        rates: Sequence[float] = RATES,
        spread: float = 1.0,
    ) -> None:
        self._begin(names, ("model",), cap, rates, spread)

    def _begin(
        self, names: Sequence[str], groups: Sequence[str], cap: float, rates: Sequence[float], spread: float
    ) -> None:
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(f"{KEY} combines {len(names)} checkpoints: {', '.join(names)}", "two or more, each once")
        if not 1 <= cap < math.inf:
            raise ConfigError(f"{KEY}.cap is {cap}", "1 or more: a checkpoint as it is has a coefficient of 1")
        for i, rate in enumerate(rates):
            if not 0 < rate < 1:
                raise ConfigError(
                    f"{KEY}.rates[{i}] is {rate}",
                    "above 0, which is the last checkpoint, and below 1, which is the uniform average",
                )
        if not (0 < spread < math.inf):
            raise ConfigError(f"{KEY}.spread is {spread}", "above 0")
        self.names, self.groups, self._cap = tuple(names), tuple(groups), float(cap)
        count = len(names)
        known = {self.names[-1]: 0.0, UNIFORM: 1.0, **{f"EMA {rate:g}": float(rate) for rate in sorted(rates)}}
        averages = {name: moving_average(count, rate) for name, rate in known.items()}
        first = averages[f"EMA {sorted(rates)[len(rates) // 2]:g}" if rates else UNIFORM]
        share = min(spread / count / (2 * self._cap), 1.0)
        self.spec = GenomeSpec(
            tuple(
                Gene(f"{group}/{name}/weight", low=-self._cap, high=self._cap, initial=float(value), spread=share)
                for group in self.groups
                for name, value in zip(self.names[1:], first[1:], strict=True)
            )
        )
        self.starts = {
            name: self.spec.genome(np.tile(average[1:], len(self.groups))) for name, average in averages.items()
        }

    def coefficients(self, genome: Genome) -> dict[str, Array]:
        """The coefficients of all checkpoints, shape ``(n,)`` in their order, for every group.

        Raises:
            ConfigError: the genome is not one of this space.
        """
        self.spec.check(genome)
        rows = np.array(genome.values, dtype=np.float64).reshape(len(self.groups), -1)
        return {group: summing_to_one(row, self._cap) for group, row in zip(self.groups, rows, strict=True)}

    def decode(self, genome: Genome) -> Recipe | None:
        """No recipe: the fitness combines.

        Raises:
            ConfigError: the genome is not one of this space.
        """
        self.spec.check(genome)
        return None


class CheckpointSpace(CoefficientSpace):
    """Linear combinations of all models of a pool, checkpoints of one training in its order; implements `SearchSpace`.

    LCSC (arXiv 2404.02241): ``theta = theta_1 + sum_i alpha_i (theta_i - theta_1)``. Recipes are plain ``linear``
    ones that are not normalised. The first model of the pool is the first checkpoint, whether it is the base or not.
    Slices that are equal in all models come out as they are.

    Args:
        pool: the checkpoints, in order.
        methods: not used: it is the method ``linear``.
        layer_group: ``None`` for one coefficient per checkpoint for the whole model, as in the paper; or how many
            layers share coefficients, as in `search_spaces.parameter.ParameterSpace`.
        components: with a `layer_group`, which components of its layers do, likewise.
        cap, rates, spread: as of `CoefficientSpace`.

    Attributes:
        baselines: recipes of `starts`: what the winner is compared with, in the place of every checkpoint.

    Raises:
        ConfigError: anything of the above that cannot be, or models that differ in depth.

    >>> from evomerge.recipes import ModelRef, SliceId
    >>> refs = tuple((name, ModelRef(name)) for name in ("step-1", "step-2"))
    >>> pool = PoolInfo(refs, ("step-2",), "step-1", (SliceId("embed"),), layers=0, dtype="float32")
    >>> recipe = CheckpointSpace(pool, {}).decode(Genome((1.5,)))
    >>> [(own.model, dict(own.parameters)["weight"]) for own in recipe.slices[0].inputs]
    [('step-1', -0.5), ('step-2', 1.5)]
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        layer_group: int | str | None = None,
        components: str | list[list[str]] = "all",
        cap: float = 2.0,
        rates: Sequence[float] = RATES,
        spread: float = 1.0,
    ) -> None:
        if pool.uneven:
            raise ConfigError(pool.uneven, "checkpoints of one training")
        self._pool = pool
        given = layer_group is not None
        lists = component_lists(components if given else [list(COMPONENTS)], f"{KEY}.components")
        sharing = layer_groups(pool, layer_group if layer_group is not None else "all", lists, f"{KEY}.layer_group")
        if not given and components != "all":
            raise ConfigError(
                f"{KEY}.components is given, and all slices share their coefficients",
                "layer_group and components together",
                f"set {KEY}.layer_group, to all for instance",
            )
        self._group = {slice_: shares[0][0] for slice_, shares in sharing.shares.items()}
        self._begin([name for name, _ in pool.refs], sharing.names, cap, rates, spread)

    def decode(self, genome: Genome) -> Recipe:
        """The genome's recipe; depends on nothing but the genome and the construction.

        Raises:
            ConfigError: the genome is not one of this space.
        """
        made = [self._inputs(own) for own in self.coefficients(genome).values()]
        whole = self._inputs(np.arange(len(self.names)) == len(self.names) - 1)
        constant = frozenset(self._pool.constant)

        def entry(slice_: SliceId) -> SliceRecipe:
            inputs = whole if slice_ in constant else made[self._group[slice_]]
            return SliceRecipe(slice_, "linear", inputs, (("normalize", False),))

        return self._pool.recipe(map(entry, self._pool.slices))

    @cached_property
    def baselines(self) -> dict[str, Recipe]:
        """See the class."""
        return {name: self.decode(genome) for name, genome in self.starts.items()}

    def _inputs(self, coefficients: Array | NDArray[np.bool_]) -> tuple[Input, ...]:
        pairs = zip(self.names, coefficients.tolist(), strict=True)
        return tuple(Input(name, None, (("weight", float(value)),)) for name, value in pairs)
