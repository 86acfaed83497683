"""The search space of a landscape: the genes of the run that it is of, without models and recipes."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.landscape.file import read_landscape
from evomerge.recipes.method_spec import MethodSpec
from evomerge.recipes.pool_info import PoolInfo


class LandscapeSpace:
    """The genes, kinds, bounds and starts of a run; there is no recipe. Implements `protocols.SearchSpace`.

    `decode` answers ``None``, as of raw weights, for fitnesses that score genomes (`fitness.surrogate`). Genomes that
    had no model in the run have a score here: the landscape knows of no such genomes.

    Args:
        pool, methods: not used; there is no pool.
        file: of the landscape.

    Raises:
        ConfigError: there is no such file, or it is no landscape.
    """

    def __init__(self, pool: PoolInfo | None, methods: Mapping[str, MethodSpec], *, file: str) -> None:
        self._spec = read_landscape(file).spec

    @property
    def spec(self) -> GenomeSpec:
        """The genes."""
        return self._spec

    def decode(self, genome: Genome) -> None:
        """No recipe.

        Raises:
            ConfigError: the genome is of another space.
        """
        self._spec.check(genome)
