"""Scrambled Sobol points: random search that leaves no holes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from scipy.stats.qmc import Sobol

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec, Value
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.bases.capabilities import KINDS, require


class QuasiRandom:
    """Proposes the points of a scrambled Sobol sequence, whatever it is told; implements `protocols.Strategy`.

    Every kind of gene takes its share of a coordinate: choices and whole numbers are intervals of equal length. The
    first 2^k proposals are spread evenly, for any k (Owen, "Scrambling Sobol' and Niederreiter-Xing Points", 1998).

    Args:
        spec: the genes, at most 21,201 free ones.
        objectives: not used; a search needs one to know what is best.
        seed: of the scrambling.
        batch: how many ``ask(None)`` proposes.

    Raises:
        ConfigError: no free gene, too many, or arguments out of range.
    """

    asynchronous: ClassVar[bool] = True
    multi_objective: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = KINDS
    learns: ClassVar[bool] = False

    def __init__(self, spec: GenomeSpec, objectives: Sequence[Objective], *, seed: int, batch: int = 16) -> None:
        if batch < 1:
            raise ConfigError(f"strategy.batch is {batch}", "at least 1")
        require(type(self), "QMC", spec, objectives, seed)
        low, high = spec.bounds
        self._free = [int(i) for i in np.flatnonzero(low < high)]
        if len(self._free) > Sobol.MAXDIM:
            raise ConfigError(
                f"strategy QMC was given {len(self._free)} free genes",
                f"a Sobol sequence has at most {Sobol.MAXDIM} coordinates",
                "choose strategy=random",
            )
        self._spec, self._batch = spec, batch
        self._begin(seed)

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals, or a batch."""
        return [self._propose() for _ in range(self._batch if n is None else max(n, 0))]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        """The seed and how many points were drawn."""
        return {"seed": self._seed, "drawn": self._sobol.num_generated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the points that would have come next."""
        self._begin(int(state["seed"]))
        if state["drawn"]:
            self._sobol.fast_forward(int(state["drawn"]))

    def _begin(self, seed: int) -> None:
        self._seed = seed
        self._sobol = Sobol(len(self._free), rng=np.random.default_rng(seed))

    def _propose(self) -> Proposal:
        values: list[Value] = list(self._spec.initial.values)
        for i, share in zip(self._free, self._sobol.random(1)[0], strict=True):
            values[i] = value_at(self._spec.genes[i], float(share))
        return Proposal(self._spec.genome(values))


def value_at(gene: Gene, share: float) -> Value:
    """The gene's value at a share of its range, from 0 to 1; discrete values have equal shares."""
    if gene.kind in ("categorical", "boolean"):
        choices: tuple[Value, ...] = gene.choices or (False, True)
        return choices[min(int(share * len(choices)), len(choices) - 1)]
    if gene.kind == "integer":
        low, high = math.ceil(gene.low), math.floor(gene.high)
        return min(low + int(share * (high - low + 1)), high)
    return gene.low + share * (gene.high - gene.low)
