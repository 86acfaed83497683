"""Islands: several strategies side by side that send each other their best."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal, Strategy, StrategyBuilder
from evomerge.strategies.archives.emigrants import Emigrants, Select, plain
from evomerge.strategies.bases.capabilities import KINDS, Competing, Injectable, check_range, require
from evomerge.strategies.bases.conditional import Active, Conditional
from evomerge.strategies.bases.generations import gain_of
from evomerge.strategies.bases.saving import rng_state
from evomerge.strategies.bases.territory import Territory


class Islands:
    """Independent strategies with migration; implements `protocols.Strategy`.

    Every island is a strategy of its own with a seed of its own; a candidate is told to the island that proposed it.
    After every `every` evaluations each island sends some of those told to it since the last time (`Emigrants`): to the
    next island (``ring``), to another one drawn at random (``random``), or each to another one (``scatter``). The
    receiver takes them in with `inject`, as its class documents: populations and archives as if they had proposed them.
    Strategies without `inject` (random search, Sobol points, CMA-ES and what else moves by generations) send migrants
    and receive none.

    Islands may search different genes of the space: those that they do not search stay at their start. A migrant that
    can be found where it arrives is taken in with its score. Of any other the genes that are free there are taken over,
    the others put at their start, and what comes of it is evaluated, as the migrant's child, before it is taken in;
    where no gene is free on both islands nobody travels. The ledger's parents tell the lineage across islands.

    In GigaEvo, whose selectors and limits these are, migrants move; here they stay where they are, too.

    Proposals are taken from the islands in turns; an island that waits for its generation is passed over.

    Args:
        spec: the genes, of the kinds that all islands handle.
        objectives: those of the search.
        seed: of the islands' seeds and of random migration.
        strategies: one or several configuration nodes with `_target_`; island i is the i-th of them, counted round.
        islands: how many.
        every: evaluations between migrations, of all islands together.
        migrants: how many each sends, at most.
        share: of those told to it, rounded up; as many as `migrants` for ``None``.
        select: which: ``best``, ``random``, or ``front``; see `Emigrants`.
        topology: ``ring``, ``random`` or ``scatter``.
        genes: patterns of the genes that each island searches, ``None`` for all; island i has the i-th, counted round.

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
        share: float | None = None,
        select: Select = "best",
        topology: Literal["ring", "random", "scatter"] = "ring",
        genes: list[list[str] | None] | None = None,
    ) -> None:
        check_range("islands", islands, 1, 1000)
        check_range("every", every, 1, math.inf)
        check_range("migrants", migrants, 0, math.inf)
        require(type(self), "Islands", spec, objectives, seed)
        check_range("share", 1 if share is None else share, 0, 1)
        words = (("topology", topology, ("ring", "random", "scatter")), ("select", select, ("best", "random", "front")))
        for name, word, known in words:
            if word not in known:
                raise ConfigError(f"strategy.{name} is {word!r}", nearest(word, known))
        if not strategies:
            raise ConfigError("strategy.strategies is empty", "one or more strategies")
        if genes is not None and not genes:
            raise ConfigError("strategy.genes is empty", "an entry for each island, counted round, or null")
        entries = [None if genes is None else genes[i % len(genes)] for i in range(islands)]
        self._lands = [Territory(spec, entry, f"strategy.genes.{i}") for i, entry in enumerate(entries)]
        seeds = [int(child) for child in np.random.SeedSequence([seed, islands]).generate_state(islands)]
        self._islands: list[Strategy] = [
            strategies[i % len(strategies)](self._lands[i].spec, objectives, seed=child)
            for i, child in enumerate(seeds)
        ]
        self.asynchronous = all(getattr(island, "asynchronous", False) for island in self._islands)
        self.estimates = all(getattr(island, "estimates", True) for island in self._islands)
        if all(isinstance(island, Competing) for island in self._islands):
            self.to_beat = self._to_beat
        self._spec, self._objectives, self._select = spec, objectives, select
        self._every, self._topology = every, topology
        self._rng = np.random.default_rng([seed, 1])
        self._emigrants = [Emigrants(select, migrants, share) for _ in self._islands]
        self._arriving: list[deque[Proposal]] = [deque() for _ in self._islands]  # to be evaluated, and then taken in
        # Of every genome in flight the islands that proposed it, and who of it has been told meanwhile: islands
        # that begin at the same start propose equals, and a repeat must not pass for the other's. Of one that arrives
        # the island's number is larger by the number of islands.
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
        first = self._objectives if self._select == "front" else self._objectives[:1]
        gains = [gain_of(evaluation, objective) for objective in first]
        arrives, index = divmod(waiting[0][0], len(self._islands))
        self._learn(self._islands[index], bool(arrives), self._lands[index].seen(candidate), evaluation)
        waiting[0].popleft()
        waiting[1].add(candidate.id)
        if not waiting[0]:
            del self._waiting[candidate.genome]
        if not any(map(math.isnan, gains)):
            self._emigrants[index].add((gains[0], candidate, evaluation), self._objectives, self._rng)
        self._told += 1
        if self._told % self._every == 0:
            self._migrate()

    @staticmethod
    def _learn(island: Strategy, arrives: bool, candidate: Candidate, evaluation: Evaluation) -> None:
        """Tell an island of its own candidate, or let it take in one that has arrived."""
        if arrives and isinstance(island, Injectable):
            island.inject(candidate, evaluation)
        else:
            island.tell(candidate, evaluation)

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Let all islands take in a candidate from elsewhere that can be found there, as far as they do."""
        for island, land in zip(self._islands, self._lands, strict=True):
            if isinstance(island, Injectable) and candidate.genome is not None and land.holds(candidate.genome):
                island.inject(land.seen(candidate), evaluation)

    def _to_beat(self, candidate: Candidate) -> int | None:
        """Whom the island that proposed it says; a candidate from elsewhere has nobody."""
        waiting = self._waiting.get(candidate.genome) if candidate.genome is not None else None
        if not waiting or waiting[0][0] >= len(self._islands):
            return None
        index = waiting[0][0]
        return self._islands[index].to_beat(self._lands[index].seen(candidate))  # type: ignore[attr-defined,no-any-return]

    def know_active(self, active: Active) -> None:
        """Tell all islands which genes act, as far as they ask."""
        for island, land in zip(self._islands, self._lands, strict=True):
            if isinstance(island, Conditional):
                island.know_active(land.active(active))

    def state_dict(self) -> dict[str, Any]:
        """The islands' states, who waits for what, and the emigrants-to-be."""
        return {
            "islands": [island.state_dict() for island in self._islands],
            "rng": rng_state(self._rng),
            "turn": self._turn,
            "told": self._told,
            "waiting": [
                [plain(genome), list(islands), sorted(told)] for genome, (islands, told) in self._waiting.items()
            ],
            "best": [emigrants.state() for emigrants in self._emigrants],
            "since": [emigrants.told for emigrants in self._emigrants],
            "arriving": [[[plain(p.genome), list(p.parents)] for p in arriving] for arriving in self._arriving],
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
        since = state.get("since", [len(best) for best in state["best"]])  # states of old runs do not say
        for emigrants, best, told in zip(self._emigrants, state["best"], since, strict=True):
            emigrants.load(best, int(told), self._spec)
        rows = state.get("arriving", [[] for _ in self._islands])
        self._arriving = [deque(Proposal(self._spec.genome(g), tuple(parents)) for g, parents in row) for row in rows]

    def _from(self, index: int, n: int | None) -> list[Proposal]:
        """What one island proposes: who arrives first."""
        found: list[Proposal] = []
        arriving, land = self._arriving[index], self._lands[index]
        while arriving and (n is None or len(found) < n):
            found.append(arriving.popleft())
            self._wait(found[-1].genome, index + len(self._islands))
        if n is None or len(found) < n:
            for proposal in self._islands[index].ask(None if n is None else n - len(found)):
                found.append(Proposal(land.full(proposal.genome), proposal.parents))
                self._wait(found[-1].genome, index)
        return found

    def _wait(self, genome: Genome, number: int) -> None:
        self._waiting.setdefault(genome, (deque(), set()))[0].append(number)

    def _migrate(self) -> None:
        """Every island sends some of those told to it of late."""
        count = len(self._islands)
        leaving = [emigrants.leave(self._rng) for emigrants in self._emigrants]
        if count == 1:
            return
        for index, emigrants in enumerate(leaving):
            step = 1 if self._topology == "ring" else int(self._rng.integers(1, count))
            for number, (_, candidate, evaluation) in enumerate(emigrants):
                if number and self._topology == "scatter":
                    step = int(self._rng.integers(1, count))
                self._arrive(index, (index + step) % count, candidate, evaluation)

    def _arrive(self, sender: int, receiver: int, candidate: Candidate, evaluation: Evaluation) -> None:
        """Take a migrant in, or have what it is here evaluated first."""
        island, land, genome = self._islands[receiver], self._lands[receiver], candidate.genome
        if not isinstance(island, Injectable) or genome is None:
            return
        if land.holds(genome):
            island.inject(land.seen(candidate), evaluation)
        elif land.shares(self._lands[sender]):
            child = Proposal(land.translated(genome), (candidate.id,))
            if all(child.genome != other.genome for other in self._arriving[receiver]):
                self._arriving[receiver].append(child)
