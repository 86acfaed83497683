"""Models with a switch: a shared model of any merge method, and what of it, or beside it, is each task's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Gene, Genome
from evomerge.recipes.method_spec import MethodSpec, Scalar
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId
from evomerge.recipes.switches import MASKS, SWITCHES, with_switch
from search_spaces.parameter import KEY, ParameterSpace
from search_spaces.ranges import BySource, Choice, Explored, Range, of_inputs


class SwitchedSpace(ParameterSpace):
    """The parameter space of the shared model, with genes more for each task's switch.

    Tasks are the pool's sources, and have their names. A fitness says which of its tasks is scored with which switch
    (`fitness.tasks=[{task: gsm8k, switch: math}]`). Genes of a switch are of the whole model, one for each task:
    ``switch/math/selectivity``; they come last. Slices that are equal in all models have no switch.

    Args:
        pool, methods: as for `ParameterSpace`.
        switch: ``emr_switch``, ``tall_switch`` or ``twin_switch``: see `evomerge methods --family switches`.
        switch_parameters: of the switch, as `parameters` of the merge: a number, true or false, or a range to
            search; of all tasks, or by their names.
        method: of the shared model; the papers have ``emr`` for emr_switch, ``task_arithmetic`` for the others.
        layer_group, components, interpolation, anchors, parameters: of the shared model, as for `ParameterSpace`.
        negative_weights, normalize, resolution, mask_seed: likewise.

    Attributes:
        switch_tasks: the sources, in order.

    Raises:
        ConfigError: an unknown switch or parameter of it, fewer than two sources, no base for masks, or anything that
            `ParameterSpace` refuses; names the key.
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        switch: str = "emr_switch",
        switch_parameters: dict[str, Any] | None = None,
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
        if switch not in SWITCHES:
            raise ConfigError(f"{KEY}.switch is {switch!r}", nearest(switch, SWITCHES))
        if len(pool.sources) < 2:
            raise ConfigError(
                f"{KEY}.switch has one task, the only source {', '.join(pool.sources)}", "two sources or more"
            )
        if switch in MASKS and pool.base is None:
            raise ConfigError(
                f"{KEY}.switch is {switch!r} and the pool has no base",
                "its masks are of differences from a base model",
                "name one with pool.base, or choose twin_switch",
            )
        self.switch_tasks = pool.sources
        self._switch = switch
        self._explored = _explored(methods[switch], switch_parameters or {}, pool.sources, resolution)
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

    def decode(self, genome: Genome) -> Recipe:
        """The genome's recipe with a switch; depends on nothing but the genome and the construction.

        Raises:
            ConfigError, InfeasibleError: as for `ParameterSpace.decode`.
        """
        shared = super().decode(genome)
        tasks = {task: self._own(genome, task) for task in self.switch_tasks}
        return with_switch(shared, self._switch, tasks, self._pool.base, self._equal)

    def acting(self, genome: Genome, slices: Iterable[SliceId]) -> frozenset[str]:
        """The names of the genes that some of the pool's slices depend on; those of switches act in all that differ."""
        slices = tuple(slices)
        own = () if self._equal.issuperset(slices) else [gene.name for gene in self._further_genes()]
        return super().acting(genome, slices).union(own)

    def _own(self, genome: Genome, task: str) -> dict[str, Scalar]:
        """The switch's parameters of one task."""
        return {
            name: self._spec.value(genome, _gene(task, name)) if isinstance(found, Range | Choice) else found
            for name, found in self._explored[task].items()
        }

    def _further_genes(self) -> list[Gene]:
        return [
            found.gene(_gene(task, name))
            for task, own in self._explored.items()
            for name, found in own.items()
            if isinstance(found, Range | Choice)
        ]


def _gene(task: str, parameter: str) -> str:
    return f"switch/{task}/{parameter}"


def _explored(
    spec: MethodSpec, options: Mapping[str, Any], tasks: Sequence[str], resolution: float | None
) -> dict[str, dict[str, Explored | Scalar]]:
    """By task a range, a choice or a fixed value for every parameter of a switch."""
    key, names = f"{KEY}.switch_parameters", [parameter.name for parameter in spec.parameters]
    for name in options:
        if name not in names:
            raise ConfigError(f"{key} has {name!r}, unknown to {spec.name}", nearest(str(name), names))
    found: dict[str, dict[str, Explored | Scalar]] = {task: {} for task in tasks}
    for parameter in spec.parameters:
        option = options.get(parameter.name)
        value = of_inputs(parameter, option, tasks, False, resolution, f"{key}.{parameter.name}")
        for task, own in found.items():
            own[parameter.name] = value.values[task] if isinstance(value, BySource) else value
    return found
