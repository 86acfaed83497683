"""The state of a search between two evaluations: taken down as JSON values and arrays, and begun from."""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from typing import Any

from evomerge.candidate import Candidate
from evomerge.errors import ConfigError, EvomergeError
from evomerge.genomes.encoding import pack_genomes, unpack_genomes
from evomerge.protocols import SearchSpace
from evomerge.run.checkpoint import Checkpoint, Checkpoints, Position, read_checkpoints
from evomerge.run.ledger import Kind
from evomerge.search.in_flight import Flight
from evomerge.search.loop import Search
from evomerge.search.state import Course
from evomerge.session.replay import ContinuedLedger

_log = logging.getLogger(__name__)


def fits(search: Search) -> bool:
    """Whether a search can begin from its state as it is now.

    A phase must be under way, nothing half done and everything that an earlier session wrote passed. And the end of
    the budget must not have been felt yet: with a larger one, the strategy would have been asked for more.
    """
    course = search.course
    return course is not None and search.settled and search.ledger.live and not course.bounded


def passed_of(state: Mapping[str, Any]) -> dict[Kind, int]:
    """How many events of each kind a search had behind it."""
    return {(str(name), str(split)): int(count) for name, split, count in state["passed"]}


def capture(search: Search) -> dict[str, Any]:
    """Everything that decides how a search goes on, its strategy's state included; nothing in it changes later."""
    course = search.course
    assert course is not None
    flight = course.flight.candidates
    needed = {c.id: c for c in (*search.winners, *search.incumbent.front.values(), *flight) if c is not None}
    genomes = [candidate.genome for candidate in needed.values() if candidate.genome is not None]
    assert len(genomes) == len(needed)
    return {
        "passed": [[*kind, count] for kind, count in search.ledger.passed.items()],
        "next_id": search.next_id,
        "counts": dict(search.counts),
        "scores": {name: dict(scores) for name, scores in search.scores.items()},
        "spent": search.spent,
        "begins": list(search.begins),
        "winners": [winner.id if winner is not None else None for winner in search.winners],
        "incumbent": search.incumbent.state(),
        "limit": course.limit,
        "asked": course.asked,
        "first": len(course.first),
        "named": sorted(course.named),
        "flight": [candidate.id for candidate in flight],
        "candidates": [
            [candidate.id, list(candidate.parents), candidate.recipe.hash if candidate.recipe is not None else None]
            for candidate in needed.values()
        ],
        "genomes": pack_genomes(genomes),
        "strategy": course.strategy.state_dict(),
    }


def restore(search: Search, state: Mapping[str, Any]) -> None:
    """Let a search that has not begun go on from a state; its ledger is left alone.

    Raises:
        ConfigError: the state is of another search: recipes are not what they were, or a strategy refuses its own.
    """
    known: dict[int, Candidate] = {}
    refused: dict[int, str | None] = {}
    rows = list(zip(state["candidates"], unpack_genomes(state["genomes"]), strict=True))
    begins = [int(begin) for begin in state["begins"]]
    spaces: list[SearchSpace] = []
    for number, phase in enumerate(search.phases[: len(begins)]):
        winner = _of(known, state["winners"][number])
        spaces.append(phase.space(winner.recipe if winner is not None else None))
        for (identity, parents, recipe_hash), genome in rows:
            if bisect_right(begins, identity) - 1 != number:
                continue
            candidate, why = search.decoded(int(identity), genome, tuple(map(int, parents)), spaces[-1])
            found = candidate.recipe.hash if candidate.recipe is not None else None
            if found != recipe_hash:
                raise ConfigError(f"candidate {identity} has recipe {found}, it had {recipe_hash}", "the same recipes")
            known[candidate.id], refused[candidate.id] = candidate, why
    number, space = len(spaces) - 1, spaces[-1]
    phase, warmth = search.phases[number], search.warm(space, number)
    scores = {str(name): dict(values) for name, values in state["scores"].items()}
    strategy = phase.strategy(warmth.started(space.spec), scores)
    strategy.load_state_dict(state["strategy"])
    first = list(warmth.again[: phase.evaluations])
    course = Course(
        phase,
        space,
        strategy,
        None if state["limit"] is None else int(state["limit"]),
        deque(first[len(first) - int(state["first"]) :]),
        Flight(search.evaluator, "search", ordered=search.ordered),
        asked=int(state["asked"]),
        named=set(map(int, state["named"])),
    )
    flight = [known[int(identity)] for identity in state["flight"]]
    winners = [_of(known, identity) for identity in state["winners"]]
    search.incumbent.load(state["incumbent"], known, list(scores.values()))
    search.take_models()
    search.next_id, search.spent = int(state["next_id"]), int(state["spent"])
    search.counts, search.scores = {str(k): int(n) for k, n in state["counts"].items()}, dict(scores)
    search.begins, search.winners, search.course = begins, winners, course
    for candidate in flight:
        course.flight.launch(candidate, refused[candidate.id])


def _of(known: Mapping[int, Candidate], identity: Any) -> Candidate | None:
    return None if identity is None else known[int(identity)]


class StateSaver:
    """Takes states of a search to its checkpoints; implements `search.Saver`.

    A strategy whose state cannot be taken down is a warning: its search has no checkpoints then.

    Args:
        checkpoints: says when, and writes them.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._failed = False

    def __call__(self, search: Search, /, *, now: bool) -> None:
        """Take the state down if it is time, or `now`."""
        told = sum(search.counts.values())
        if self._failed or not self._checkpoints.wanted or not (now or self._checkpoints.due(told)) or not fits(search):
            return
        start = time.monotonic()
        try:
            state = capture(search)
        except Exception as error:  # strategies may be the user's
            self._failed = True
            _log.warning("there will be no checkpoints: %s: %s", type(error).__name__, error)
            return
        search.ledger.sync()  # a checkpoint is never ahead of what a power failure leaves of the ledger
        position = Position(len(search.ledger), search.ledger.nbytes)
        self._checkpoints.put(position, state, told, time.monotonic() - start)


def begin(search: Search, ledger: ContinuedLedger) -> Position | None:
    """Let a resumed search begin from the latest checkpoint that can be used; otherwise nothing has happened.

    Whatever is wrong with a checkpoint is a warning, and the one before is tried.
    """
    for found in read_checkpoints(ledger.folder):
        if not isinstance(found, Checkpoint):
            _log.warning("%s", found)
            continue
        try:
            passed = passed_of(found.state)
            restore(search, found.state)
        except Exception as error:  # strategies may be the user's, the checkpoint anybody's
            reason = str(error) if isinstance(error, EvomergeError) else f"{type(error).__name__}: {error}"
            _log.warning("checkpoint %d is left out: %s", found.position.lines, reason)
            continue
        ledger.skip(passed)
        ledger.resumed["checkpoint"] = found.position.lines
        return found.position
    return None
