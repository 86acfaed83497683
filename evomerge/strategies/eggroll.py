"""EGGROLL: evolution strategies on the weights of a model, by perturbations of low rank.

Sarkar et al., "Evolution Strategies at the Hyperscale" (arXiv 2511.16652).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from evomerge.candidate import Candidate
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.genomes.lineages import LineageGenome
from evomerge.genomes.perturbations import MEMBER, PerturbationSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.generations import Array, Generations


class Eggroll(Generations):
    """Moves the weights of one model by the scores of a population around it; implements `protocols.Strategy`.

    Member ``2p`` of a generation is ``W + sigma / sqrt(r) A_p B_p^T`` in every matrix, member ``2p + 1`` its antithetic
    twin with a minus; the entries of ``A_p`` and ``B_p`` are standard normal and made again from a seed, so that a
    ledger has seeds, numbers and scores and no weight. After N members, with scores f that have mean 0 and standard
    deviation 1 over the generation,

        ``W <- W + learning_rate sqrt(N) 1/N sum_i f_i E_i``, with ``E_i = +-sigma / sqrt(r) A_p B_p^T``:

    the paper's estimate of the gradient and the step of plain gradient ascent, the factor as in its public code. At a
    rate of 1 the weights move by about sigma in each generation, in directions most of which are chance: what a larger
    sigma or rate gains in slope it loses in curvature. A pair of which one member has no score
    does not count, nor does a generation of equal scores.

    A generation begins with the model itself, which is scored and moves nothing: it is what a search is for, and it
    alone can be the winner. Members hardly differ from it, and the best of them is the luckiest. All are scored on the
    same items.

    Args:
        spec: of `search_spaces.perturbation.PerturbationSpace`.
        objectives: one.
        seed: of all perturbations.
        members: of a generation, in pairs.
        sigma: standard deviation of a perturbation of a weight.
        learning_rate: see above.
        decay: what `learning_rate` is multiplied by after each generation.

    Raises:
        ConfigError: arguments that cannot be; another search space.
    """

    title: ClassVar[str] = "EGGROLL"
    by_generation: ClassVar[bool] = False  # its steps weigh scores, not their order
    estimates: ClassVar[bool] = False  # twins are compared on the same items
    kinds: ClassVar[frozenset[str]] = frozenset({"perturbation"})

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        members: int = 32,
        sigma: float = 0.005,
        learning_rate: float = 0.5,
        decay: float = 1.0,
    ) -> None:
        if members < 2 or members % 2:
            raise ConfigError(f"strategy.members is {members}", "an even number, 2 or more: members come in pairs")
        for name, value in (("sigma", sigma), ("learning_rate", learning_rate)):
            if not 0 < value < math.inf:
                raise ConfigError(f"strategy.{name} is {value}", "above 0")
        if not 0 < decay <= 1:
            raise ConfigError(f"strategy.decay is {decay}", "above 0 and at most 1, for no decay")
        self._sigma, self._rate, self._decay = float(sigma), float(learning_rate), float(decay)
        super().__init__(spec, objectives, seed=seed, popsize=members + 1)

    @property
    def model(self) -> LineageGenome:
        """The present model."""
        return self._model

    def may_win(self, candidate: Candidate) -> bool:
        """Whether it is a model, and no member around one."""
        return candidate.genome is None or candidate.genome.values[0] != MEMBER

    def _settings(self) -> dict[str, Any]:
        settings = {"sigma": self._sigma, "learning_rate": self._rate, "decay": self._decay}
        return {**settings, "rank": self._perturbations.rank}

    def _start(self, seed: int) -> None:
        if not isinstance(self._spec, PerturbationSpec):
            raise ConfigError(
                "strategy EGGROLL was given another search space",
                "it perturbs the weights of one model",
                "choose search_space=perturbation",
            )
        self._perturbations = self._spec
        self._model = self._spec.initial

    def _draw(self) -> list[Genome]:
        spec, first = self._perturbations, self._first_pair
        sigma = self._sigma / math.sqrt(spec.rank)
        found: list[Genome] = [self._model]
        for pair in range(self._popsize // 2):
            found += [spec.member(self._model, self._seed, first + pair, sign * sigma) for sign in (1, -1)]
        return found

    @property
    def _first_pair(self) -> int:
        """The number of the present generation's first pair: none is drawn twice, where a model did not move either."""
        return len(self._history) * (self._popsize // 2)

    def _move(self, gains: Array) -> None:
        rate = self._rate * self._decay ** len(self._history)
        weights = pair_weights(gains[1:].reshape(-1, 2)) * (rate * self._sigma / math.sqrt(self._perturbations.rank))
        if weights.any():
            self._model = self._perturbations.step(self._model, self._seed, self._first_pair, weights.tolist())

    def _drawn(self) -> dict[str, Any]:
        """The numbers of the present generation's members; nothing else is random."""
        return {"first": np.array([self._first_pair] if self._genomes else [], dtype=np.int64)}

    def _take(self, drawn: Mapping[str, Any]) -> list[Genome]:
        return self._genomes


def pair_weights(gains: Array) -> Array:
    """What the perturbation of each pair counts in a step, without sigma and rate.

    ``sqrt(N) / N (f_{2p} - f_{2p+1})`` of the scores with mean 0 and standard deviation 1 (arXiv 2511.16652, section 4,
    and its code's factor), N the members that count.

    Args:
        gains: shape ``(pairs, 2)``, of each perturbation and its twin, NaN for none.

    Returns:
        Shape ``(pairs,)``: 0 where one of a pair has no score, and everywhere where all scores are equal.
    """
    known = ~np.isnan(gains).any(1)
    scores = gains[known]
    found = np.zeros(len(gains))
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = scores.std() if scores.size else 0.0
    if deviation > 0 and math.isfinite(deviation):
        found[known] = (scores[:, 0] - scores[:, 1]) / deviation / math.sqrt(scores.size)
    return found
