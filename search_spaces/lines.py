"""LiNeS: what a merge adds to the base grows from the first layer to the last (arXiv 2410.17146)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome
from evomerge.recipes.method_spec import MethodSpec, ParameterSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import SliceId, SliceRecipe
from evomerge.recipes.slices import parameters as as_parameters
from search_spaces.parameter import KEY, ParameterSpace
from search_spaces.ranges import Range, explored

_SCALED = "lambda"
_ALPHA = ParameterSpec("alpha", 1.0, low=0.0, high=1.5, searched=True)
_BETA = ParameterSpec("beta", 0.0, low=0.0, high=1.5, searched=True, initial=0.0)


class LinesSpace(ParameterSpace):
    """The parameter space with two genes more, for a factor on what is added to the base, linear in depth.

    ``lambda`` of a slice in layer l of L is times ``alpha + beta l / (L - 1)``, of embeddings, final norm and head
    times ``alpha`` (LiNeS, arXiv 2410.17146, and its authors' code): lower layers, which serve all tasks,
    stay nearer to the base. It wraps any method that has a ``lambda``. As every slice has a recipe of its own and
    nothing but its ``lambda`` changes, it is a search space, not a method: recipes, caches and exports see
    a merge like others. The genes are ``lines/alpha`` and ``lines/beta``, the last two; both count for all slices.

    Args:
        pool, methods: as for `ParameterSpace`.
        alpha: the factor on the first layer: a number, or ``{low, high, initial, resolution}`` (any of them) to search.
            The paper has ``||sum tau|| / (T ||tau_merged||)`` for a merge of T models, 1/T for a sum.
        beta: what is added to it up to the last layer, likewise.
        options: as for `ParameterSpace`.

    Raises:
        ConfigError: a method without ``lambda``, or anything that `ParameterSpace` refuses; names the key.
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        alpha: float | dict[str, Any] | None = None,
        beta: float | dict[str, Any] | None = None,
        method: str | list[str] = "task_arithmetic",
        layer_group: int | str = "layer",
        components: str | list[list[str]] = "each",
        interpolation: Literal["none", "linear"] = "none",
        anchors: int = 3,
        parameters: dict[str, Any] | None = None,
        negative_weights: bool = False,
        normalize: bool | None = None,
        resolution: float | None = None,
        mask_seed: int = 0,
    ) -> None:
        self._line: dict[str, Range | float] = {}
        for spec, option in ((_ALPHA, alpha), (_BETA, beta)):
            found = explored(spec, option, 1, False, resolution, f"{KEY}.{spec.name}")
            if isinstance(found, Range):
                self._line[spec.name] = found if found.low < found.high else found.low
            else:
                self._line[spec.name] = _number(found)
        self._depth = max(pool.layers - 1, 1)
        super().__init__(
            pool,
            methods,
            method=method,
            layer_group=layer_group,
            components=components,
            interpolation=interpolation,
            anchors=anchors,
            parameters=parameters,
            negative_weights=negative_weights,
            normalize=normalize,
            resolution=resolution,
            mask_seed=mask_seed,
        )
        for choice in self._choices:
            if choice.spec.parameter(_SCALED) is None:
                known = ", ".join(sorted(name for name, spec in methods.items() if spec.parameter(_SCALED) is not None))
                raise ConfigError(
                    f"{KEY}.method is {choice.name}, which has no {_SCALED}",
                    f"methods with a factor on the sum of differences: {known}",
                    "choose one of them, or search_space=parameter",
                )

    def _further_genes(self) -> list[Gene]:
        return [found.gene(f"lines/{name}") for name, found in self._line.items() if isinstance(found, Range)]

    def acting(self, genome: Genome, slices: Iterable[SliceId]) -> frozenset[str]:
        """The names of the genes that some of the pool's slices depend on; the line acts in all that are merged."""
        slices = tuple(slices)
        merged = [slice_ for slice_ in slices if slice_ not in self._equal]
        acting = {"lines/alpha": bool(merged), "lines/beta": any(slice_.layer for slice_ in merged)}
        return super().acting(genome, slices) | {gene.name for gene in self._further_genes() if acting[gene.name]}

    def entries(self, genome: Genome, slices: Iterable[SliceId]) -> Iterator[SliceRecipe]:
        """How the genome, one of this space, makes some of the pool's slices.

        Raises:
            InfeasibleError: weights to be normalised sum to zero in one of these slices.
        """
        alpha, beta = (
            _number(self._spec.value(genome, f"lines/{name}")) if isinstance(found, Range) else found
            for name, found in self._line.items()
        )
        for entry in super().entries(genome, slices):
            if entry.slice in self._equal:
                yield entry
                continue
            values = dict(entry.parameters)
            # Outside the layers alpha alone counts (LiNeS_scaling in the authors' code).
            values[_SCALED] = _number(values[_SCALED]) * (alpha + beta * (entry.slice.layer or 0) / self._depth)
            yield SliceRecipe(entry.slice, entry.method, entry.inputs, as_parameters(values), entry.base)


def _number(value: object) -> float:
    """A value that is known to be a number."""
    assert isinstance(value, int | float), "alpha, beta and lambda are numbers"
    return float(value)
