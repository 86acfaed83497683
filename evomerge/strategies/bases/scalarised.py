"""Several objectives for a strategy that optimises one.

A wrapper around the strategy and not a fitness of its own: so the ledger, the Pareto front and the held-out table keep
the objectives as they are, and any fitness can be used with any strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evomerge.candidate import Candidate, Evaluation
from evomerge.objectives import Objective
from evomerge.protocols import Proposal, Strategy
from evomerge.strategies.bases.capabilities import Injectable

SCALAR = Objective("scalarised", "maximize")
"""The one objective that the inner strategy sees."""


class Scalarised:
    """Shows a strategy one number instead of several objectives; implements `protocols.Strategy`.

    Args:
        strategy: built for the one objective `SCALAR`.
        scalarisation: the number, larger being better, of the values of the objectives by name.
    """

    def __init__(self, strategy: Strategy, scalarisation: Callable[[Mapping[str, float]], float]) -> None:
        self.inner = strategy
        self.scalarisation = scalarisation
        self.asynchronous = bool(getattr(strategy, "asynchronous", False))
        self.estimates = bool(getattr(strategy, "estimates", True))
        self.learns = bool(getattr(strategy, "learns", True))
        if isinstance(strategy, Injectable):
            self.inject = self._inject
        for name in ("know_active", "begin_from"):  # what they tell is of genomes, not of scores
            if hasattr(strategy, name):
                setattr(self, name, getattr(strategy, name))

    def ask(self, n: int | None = None) -> Sequence[Proposal]:
        """What the strategy proposes."""
        return self.inner.ask(n)

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Tell the strategy the one number."""
        self.inner.tell(candidate, self._scalar(evaluation))

    def state_dict(self) -> dict[str, Any]:
        """The strategy's own state: the number follows from the configuration and the baselines."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the strategy's own state."""
        self.inner.load_state_dict(state)

    def _inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self.inner.inject(candidate, self._scalar(evaluation))  # type: ignore[attr-defined]

    def _scalar(self, evaluation: Evaluation) -> Evaluation:
        if not evaluation.ok:
            return evaluation
        return replace(evaluation, objectives={SCALAR.name: self.scalarisation(evaluation.objectives)})
