"""Islands: several strategies side by side that send each other their best."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.arrays import ArrayGenome
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal, Strategy, StrategyBuilder
from evomerge.strategies.bases.capabilities import KINDS, Competing, Injectable, check_range, require
from evomerge.strategies.bases.conditional import Active, Conditional
from evomerge.strategies.bases.generations import gain_of
from evomerge.strategies.bases.saving import rng_state

Emigrant = tuple[float, Candidate, Evaluation]


class Islands:
    """Independent strategies with migration; implements `protocols.Strategy`.

    Every island is a strategy of its own with a seed of its own; a candidate is told to the island that proposed it.
    After every `every` evaluations each island sends the best `migrants` of those told to it since the last time, by
    the first objective, to the next island (``ring``) or to another one drawn at random (``random``). The receiver
    takes them in with `inject`, as its class documents: populations and archives as if they had proposed them.
    Strategies without `inject` (random search, Sobol points, CMA-ES and what else moves by generations) send migrants
    and receive none.

    Proposals are taken from the islands in turns; an island that waits for its generation is passed over.

    Args:
        spec: the genes, of the kinds that all islands handle.
        objectives: those of the search.
        seed: of the islands' seeds and of random migration.
        strategies: one or several configuration nodes with `_target_`; island i is the i-th of them, counted round.
        islands: how many.
        every: evaluations between migrations, of all islands together.
        migrants: how many each sends.
        topology: ``ring`` or ``random``.

    Raises:
        ConfigError: arguments out of range, or what an island's strategy refuses.
    """

    asynchronous: bool = False  # an instance's own: whether all of its islands are
    multi_objective: ClassVar[bool] = True  # what an island cannot do it refuses itself
    kinds: ClassVar[frozenset[str]] = KINDS

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        strategies: list[StrategyBuilder],
        islands: int = 4,
        every: int = 50,
        migrants: int = 1,
        topology: Literal["ring", "random"] = "ring",
    ) -> None:
        check_range("islands", islands, 1, 1000)
        check_range("every", every, 1, math.inf)
        check_range("migrants", migrants, 0, math.inf)
        require(type(self), "Islands", spec, objectives, seed)
        if topology not in ("ring", "random"):
            raise ConfigError(f"strategy.topology is {topology!r}", "ring or random")
        if not strategies:
            raise ConfigError("strategy.strategies is empty", "one or more strategies")
        seeds = [int(child) for child in np.random.SeedSequence([seed, islands]).generate_state(islands)]
        self._islands: list[Strategy] = [
            strategies[i % len(strategies)](spec, objectives, seed=child) for i, child in enumerate(seeds)
        ]
        self.asynchronous = all(getattr(island, "asynchronous", False) for island in self._islands)
        self.estimates = all(getattr(island, "estimates", True) for island in self._islands)
        if all(isinstance(island, Competing) for island in self._islands):
            self.to_beat = self._to_beat
        self._spec, self._objective = spec, objectives[0]
        self._every, self._migrants, self._topology = every, migrants, topology
        self._rng = np.random.default_rng([seed, 1])
        self._best: list[list[Emigrant]] = [[] for _ in self._islands]
        # Of every genome in flight the islands that proposed it, and who of it has been told meanwhile: islands
        # that begin at the same start propose equals, and a repeat must not pass for the other's.
        self._waiting: dict[Genome, tuple[deque[int], set[int]]] = {}
        self._turn = 0
        self._told = 0

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals taken in turns, fewer while islands wait; all islands' natural batches for ``None``."""
        found: list[Proposal] = []
        if n is None:
            for index in range(len(self._islands)):
                found += self._from(index, None)
            return found
        refused = 0
        while len(found) < n and refused < len(self._islands):
            got = self._from(self._turn, 1)
            self._turn = (self._turn + 1) % len(self._islands)
            refused = 0 if got else refused + 1
            found += got
        return found

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Tell the island that proposed it; migrate when it is time.

        Raises:
            FitnessError: the evaluation is ok and lacks an objective; the candidate stays in flight.
        """
        waiting = self._waiting.get(candidate.genome) if candidate.genome is not None else None
        if waiting is None or candidate.genome is None or candidate.id in waiting[1]:
            return
        gain, index = gain_of(evaluation, self._objective), waiting[0][0]
        self._islands[index].tell(candidate, evaluation)
        waiting[0].popleft()
        waiting[1].add(candidate.id)
        if not waiting[0]:
            del self._waiting[candidate.genome]
        if not math.isnan(gain):
            best = [*self._best[index], (gain, candidate, evaluation)]
            self._best[index] = sorted(best, key=lambda emigrant: -emigrant[0])[: self._migrants]
        self._told += 1
        if self._told % self._every == 0:
            self._migrate()

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Let all islands take in a candidate from elsewhere, as far as they do."""
        for island in self._islands:
            if isinstance(island, Injectable):
                island.inject(candidate, evaluation)

    def _to_beat(self, candidate: Candidate) -> int | None:
        """Whom the island that proposed it says; a candidate from elsewhere has nobody."""
        waiting = self._waiting.get(candidate.genome) if candidate.genome is not None else None
        return self._islands[waiting[0][0]].to_beat(candidate) if waiting else None  # type: ignore[attr-defined]

    def know_active(self, active: Active) -> None:
        """Tell all islands which genes act, as far as they ask."""
        for island in self._islands:
            if isinstance(island, Conditional):
                island.know_active(active)

    def state_dict(self) -> dict[str, Any]:
        """The islands' states, who waits for what, and the emigrants-to-be."""
        return {
            "islands": [island.state_dict() for island in self._islands],
            "rng": rng_state(self._rng),
            "turn": self._turn,
            "told": self._told,
            "waiting": [
                [_plain(genome), list(islands), sorted(told)] for genome, (islands, told) in self._waiting.items()
            ],
            "best": [[_emigrant(*emigrant) for emigrant in best] for best in self._best],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken.

        Raises:
            ConfigError: the state is of another number of islands, or of other strategies.
        """
        if len(state["islands"]) != len(self._islands):
            raise ConfigError(
                f"the saved search has {len(state['islands'])} islands, this one has {len(self._islands)}",
                "a search resumes with the settings that it began with",
            )
        for island, saved in zip(self._islands, state["islands"], strict=True):
            island.load_state_dict(saved)
        self._rng.bit_generator.state = state["rng"]
        self._turn, self._told = int(state["turn"]), int(state["told"])
        self._waiting = {
            self._spec.genome(plain): (deque(islands), set(told)) for plain, islands, told in state["waiting"]
        }
        self._best = [[self._restored(saved) for saved in best] for best in state["best"]]

    def _from(self, index: int, n: int | None) -> list[Proposal]:
        """What one island proposes."""
        proposals = list(self._islands[index].ask(n))
        for proposal in proposals:
            self._waiting.setdefault(proposal.genome, (deque(), set()))[0].append(index)
        return proposals

    def _migrate(self) -> None:
        """Every island sends its best of late."""
        count, leaving = len(self._islands), self._best
        self._best = [[] for _ in self._islands]
        if count == 1:
            return
        for index, emigrants in enumerate(leaving):
            step = 1 if self._topology == "ring" else int(self._rng.integers(1, count))
            receiver = self._islands[(index + step) % count]
            for _, candidate, evaluation in emigrants:
                if isinstance(receiver, Injectable):
                    receiver.inject(candidate, evaluation)

    def _restored(self, saved: Mapping[str, Any]) -> Emigrant:
        identity = int(saved["candidate"])
        candidate = Candidate(identity, None, self._spec.genome(saved["genome"]), tuple(saved["parents"]))
        items = {name: np.array(values) for name, values in saved["items"].items()}
        told = Evaluation(
            identity, "ok", objectives=dict(saved["objectives"]), metrics=dict(saved["metrics"]), items=items
        )
        return float(saved["gain"]), candidate, told


def _plain(genome: Genome) -> Any:
    """A genome's values as an array or as JSON values."""
    return np.array(genome.array) if isinstance(genome, ArrayGenome) else list(genome.values)


def _emigrant(gain: float, candidate: Candidate, evaluation: Evaluation) -> dict[str, Any]:
    told = dataclasses.asdict(evaluation)
    genome = _plain(candidate.genome) if candidate.genome is not None else []
    kept = {name: told[name] for name in ("objectives", "metrics", "items")}
    return {"gain": gain, "candidate": candidate.id, "genome": genome, "parents": list(candidate.parents), **kept}
