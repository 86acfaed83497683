"""Uniform random search: the yardstick for every other strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.bases.capabilities import KINDS


class RandomSearch:
    """Draws genomes uniformly within bounds, whatever it is told; implements `protocols.Strategy`.

    Works with every kind of gene and any number of objectives. The genomes are the same however many are
    asked for at a time.

    Args:
        spec: the genes.
        objectives: not used; a search needs one to know what is best.
        seed: of the genomes.
        batch: how many ``ask(None)`` proposes.

    >>> from evomerge.genomes import Gene
    >>> strategy = RandomSearch(GenomeSpec((Gene("math/weight"),)), [Objective("score")], seed=0)
    >>> [len(proposal.genome) for proposal in strategy.ask(2)]
    [1, 1]
    """

    asynchronous: ClassVar[bool] = True
    multi_objective: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = KINDS | {"lineage", "perturbation"}
    learns: ClassVar[bool] = False

    def __init__(self, spec: GenomeSpec, objectives: Sequence[Objective], *, seed: int, batch: int = 16) -> None:
        if batch < 1:
            raise ConfigError(f"strategy.batch is {batch}", "at least 1")
        if seed < 0:
            raise ConfigError(f"search.seed is {seed}", "0 or more")
        self._spec = spec
        self._batch = batch
        self._rng = np.random.default_rng(seed)

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals, or a batch."""
        return [Proposal(self._spec.sample(self._rng)) for _ in range(self._batch if n is None else n)]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        """The random generator's state, as JSON values."""
        return {"rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the genomes that would have come next."""
        self._rng.bit_generator.state = state["rng"]
