"""What strategies can do, declared as class attributes, and the checks that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, get_args, runtime_checkable

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import GenomeSpec, Kind
from evomerge.objectives import Objective
from evomerge.protocols import Strategy

KINDS: frozenset[str] = frozenset(get_args(Kind)) - {"lineage", "perturbation"}
"""Every kind of gene that has a value; genomes that descend from others are for those who say so."""


class Capable(Protocol):
    """What a strategy says of itself.

    Attributes:
        asynchronous: `ask` never waits for evaluations: it proposes as many as are wanted at any time.
        multi_objective: it takes more than one objective.
        kinds: the kinds of genes that it handles.

    One with an attribute `estimates` that is false needs the scores of all items, and cannot be raced. One with an
    attribute `by_generation` that is true learns from the order within a generation and keeps no candidate for its
    score, which may be a lucky estimate: ``search.racing.first: auto`` is a race for these. One that has a method
    ``at_once(candidate: Candidate) -> bool`` says of which of its candidates in flight a race shall not compare first:
    they are scored on as many items as the best at once. One that has a method ``expected(number: int) -> float |
    None`` says what the objective of a candidate is by all that it knows: finalists of a race are chosen by it. One
    that has a method ``may_win(candidate: Candidate) -> bool`` says which candidates can be the winner: the others are
    scored to learn from, and the best of many that hardly differ is the luckiest.
    """

    @property
    def asynchronous(self) -> bool:
        """See above; of islands, an instance's own."""

    multi_objective: ClassVar[bool]
    kinds: ClassVar[frozenset[str]]


@runtime_checkable
class Injectable(Protocol):
    """A strategy that takes in candidates which it did not propose: migrants, recipes by name, an earlier run's.

    `tell` ignores candidates that were not proposed, so that a baseline never disturbs a search; who wants them to
    count says so with `inject`.
    """

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Learn from a candidate as if it had been proposed; one without a genome or a score is ignored."""


@runtime_checkable
class Competing(Protocol):
    """A strategy that keeps a candidate only where it beats a certain one: a race against the incumbent compares with
    that one, which need not be the best.
    """

    def to_beat(self, candidate: Candidate) -> int | None:
        """The number of the one that a candidate must beat, as things stand; ``None`` where there is none."""


def learner(strategy: Strategy) -> Callable[[Candidate, Evaluation], None]:
    """How a strategy learns from a candidate that it did not propose."""
    return strategy.inject if isinstance(strategy, Injectable) else strategy.tell


def require(strategy: type[Capable], name: str, spec: GenomeSpec, objectives: Sequence[Objective], seed: int) -> None:
    """Refuse a seed, genes or objectives that a strategy does not handle.

    Args:
        strategy: its class, which declares what it handles.
        name: what messages call it.

    Raises:
        ConfigError: with the reason.
    """
    if seed < 0:
        raise ConfigError(f"search.seed is {seed}", "0 or more")
    names = ", ".join(objective.name for objective in objectives)
    if not objectives or (len(objectives) > 1 and not strategy.multi_objective):
        raise ConfigError(
            f"strategy {name} was given {len(objectives)} objectives ({names})",
            "it optimises one",
            "set search.scalarise=weighted for one number of all, choose a strategy for several (strategy=nsga2), or "
            "give the fitness one objective",
        )
    for gene in spec:
        if gene.kind not in strategy.kinds:
            raise ConfigError(
                f"gene {gene.name!r} is {gene.kind}",
                f"strategy {name} handles {', '.join(sorted(strategy.kinds))} genes",
                "choose another strategy, or fix this gene in the search space",
            )
    low, high = spec.bounds
    if (low >= high).all():
        raise ConfigError(f"strategy {name} was given no free gene", "every gene has low equal to high")


def objective_named(objectives: Sequence[Objective], name: str | None, key: str) -> Objective:
    """The objective of this name, the first for ``None``.

    Raises:
        ConfigError: there is none of this name.
    """
    for objective in objectives:
        if name is None or objective.name == name:
            return objective
    raise ConfigError(f"{key} is {name!r}", nearest(str(name), [objective.name for objective in objectives]))


def check_range(key: str, value: float, low: float, high: float) -> None:
    """Raise `ConfigError` when ``strategy.<key>`` is out of bounds (inclusive), or NaN."""
    if not low <= value <= high:
        raise ConfigError(
            f"strategy.{key} is {value}", f"{low} to {high}" if math.isfinite(high) else f"at least {low}"
        )
