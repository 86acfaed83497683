"""A penalty on the size of genes, for the strategy alone: the winner is whoever scores best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal, Strategy
from evomerge.strategies.bases.capabilities import Injectable

KEY = "search.penalty"

_OF_GENOMES = ("know_active", "begin_from", "to_beat", "favourite")


class Penalised:
    """Shows a strategy scores less ``weight * mean |gene|`` over the genes that are numbers; implements `Strategy`.

    Evo-Merging's regulariser, ``loss + 0.05 mean |genes|``. The incumbent, finalists and a race go by the scores as
    they are: scores of two phases, whose penalties are of other genes, are compared with each other, penalised ones
    never are.

    Args:
        strategy: built for the one objective.
        spec: of its genes.
        objective: what is penalised; where less is better the penalty is added.
        weight: of the mean magnitude.

    Raises:
        ConfigError: a weight that is none, genes without a number among them, or a strategy that learns from items.

    >>> from evomerge.genomes.genome import Gene
    >>> spec = GenomeSpec((Gene("a", low=-1.0), Gene("b", low=-1.0)))
    >>> round(mean_magnitude(Genome((0.5, -1.0)), spec), 3)
    0.75
    """

    def __init__(self, strategy: Strategy, spec: GenomeSpec, objective: Objective, weight: float) -> None:
        check_penalty(weight)
        if not isinstance(spec, GenomeSpec) or not any(gene.kind in ("continuous", "integer") for gene in spec):
            raise ConfigError(
                f"{KEY} is {weight}, and the search space has no genes that are numbers",
                "a penalty is on the mean magnitude of genes",
                f"set {KEY}=0",
            )
        if not getattr(strategy, "estimates", True):
            raise ConfigError(
                f"{KEY} is {weight}, and strategy {type(strategy).__name__} learns from single items",
                "a penalty is on the objective",
                f"set {KEY}=0, or choose another strategy",
            )
        self.inner, self._spec = strategy, spec
        self._objective, self._weight = objective, weight
        self.asynchronous = bool(getattr(strategy, "asynchronous", False))
        self.learns = bool(getattr(strategy, "learns", True))
        self.by_generation = bool(getattr(strategy, "by_generation", False))
        if isinstance(strategy, Injectable):
            self.inject = self._inject
        for name in _OF_GENOMES:  # what they tell is of genomes, not of scores
            if hasattr(strategy, name):
                setattr(self, name, getattr(strategy, name))

    def ask(self, n: int | None = None) -> Sequence[Proposal]:
        """What the strategy proposes."""
        return self.inner.ask(n)

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Tell the strategy the penalised score."""
        self.inner.tell(candidate, self._shown(candidate, evaluation))

    def state_dict(self) -> dict[str, Any]:
        """The strategy's own state: the penalty follows from genome and configuration."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the strategy's own state."""
        self.inner.load_state_dict(state)

    def penalised(self, candidate: Candidate, evaluation: Evaluation) -> Mapping[str, float]:
        """The penalised score by the objective's name; empty where there is no score, or no genome."""
        name = self._objective.name
        if candidate.genome is None or name not in evaluation.objectives:
            return {}
        penalty = self._weight * mean_magnitude(candidate.genome, self._spec)
        sign = -1.0 if self._objective.direction == "maximize" else 1.0
        return {name: evaluation.objectives[name] + sign * penalty}

    def _inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self.inner.inject(candidate, self._shown(candidate, evaluation))  # type: ignore[attr-defined]

    def _shown(self, candidate: Candidate, evaluation: Evaluation) -> Evaluation:
        return replace(evaluation, objectives={**evaluation.objectives, **self.penalised(candidate, evaluation)})


def check_penalty(weight: object) -> None:
    """Refuse a weight that is no number from 0."""
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not 0 <= weight < math.inf:  # type: ignore[operator]  # a number
        raise ConfigError(f"{KEY} is {weight!r}", "a number from 0: what a mean magnitude of one costs")


def check_single(objectives: Sequence[Objective]) -> None:
    """Refuse a penalty on several objectives."""
    if len(objectives) > 1:
        names = ", ".join(objective.name for objective in objectives)
        raise ConfigError(f"{KEY} is set and there are {len(objectives)} objectives ({names})", "one objective")


def mean_magnitude(genome: Genome, spec: GenomeSpec) -> float:
    """The mean magnitude of a genome's numbers; choices and truth values are none."""
    pairs = zip(genome.values, spec, strict=True)
    sizes = [abs(float(value)) for value, gene in pairs if gene.kind in ("continuous", "integer")]
    return math.fsum(sizes) / len(sizes)


def with_penalty(strategy: Strategy, candidate: Candidate, evaluation: Evaluation) -> tuple[Candidate, Evaluation]:
    """A candidate and its evaluation, which notes the penalised score where the strategy is shown one."""
    if not isinstance(strategy, Penalised):
        return candidate, evaluation
    return candidate, replace(evaluation, penalised=strategy.penalised(candidate, evaluation))
