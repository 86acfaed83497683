"""The state of a search between two evaluations: saved as JSON values and arrays, and begun from."""

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
from evomerge.run.ledger import Kind, Ledger
from evomerge.search.aims import Aims, strategy_of
from evomerge.search.informing import informed
from evomerge.search.loop import Search
from evomerge.search.starts import begin_with
from evomerge.search.state import PhaseState, SearchState, decoded
from evomerge.search.stopping import Stopping
from evomerge.session.replay import ContinuedLedger

_log = logging.getLogger(__name__)


def fits(state: SearchState, ledger: Ledger) -> bool:
    """Whether a search can begin from this state.

    A phase must be under way, nothing half done and everything that an earlier session wrote passed. And the end of
    the budget must not have been felt yet: with a larger one, the strategy would have been asked for more.
    """
    return state.phase is not None and state.settled and ledger.live and not state.phase.bounded


def passed_of(state: Mapping[str, Any]) -> dict[Kind, int]:
    """How many events of each kind a search had behind it."""
    return {(str(name), str(split)): int(count) for name, split, count in state["passed"]}


def capture(state: SearchState, ledger: Ledger) -> dict[str, Any]:
    """The state as JSON values and arrays, its strategy's included; nothing in it changes later."""
    phase = state.phase
    assert phase is not None
    pending = phase.pending.candidates
    aimed = state.aims.winners if state.aims is not None else ()
    kept = (*state.winners, *aimed, *state.incumbent.front.values(), *state.leaders.candidates, *pending)
    needed = {c.id: c for c in kept if c is not None}
    genomes = [candidate.genome for candidate in needed.values() if candidate.genome is not None]
    assert len(genomes) == len(needed)
    return {
        "passed": [[*kind, count] for kind, count in ledger.passed.items()],
        "next_id": state.next_id,
        "counts": dict(state.counts),
        "scores": {name: dict(scores) for name, scores in state.scores.items()},
        "spent": state.spent,
        "stopping": state.stopping.state(),
        "begins": list(state.begins),
        "winners": [winner.id if winner is not None else None for winner in state.winners],
        "aims": state.aims.state() if state.aims is not None else None,
        "incumbent": state.incumbent.state(),
        "limit": phase.limit,
        "asked": phase.asked,
        "first": len(phase.first),
        "named": sorted(phase.named),
        "flight": [candidate.id for candidate in pending],
        "against": [[number, other] for number, other in phase.pending.against.items()],
        "learnt": phase.pending.learnt,
        "leaders": state.leaders.state(),
        "candidates": [
            [candidate.id, list(candidate.parents), candidate.recipe.hash if candidate.recipe is not None else None]
            for candidate in needed.values()
        ],
        "genomes": pack_genomes(genomes),
        "strategy": phase.strategy.state_dict(),
    }


def restore(search: Search, saved: Mapping[str, Any]) -> None:
    """Let a search that has not begun go on from a state; its ledger is left alone.

    Raises:
        ConfigError: the state is of another search: recipes are not what they were, or a strategy refuses its own.
    """
    stopping = Stopping()
    if search.rules.event or "stopping" in saved:  # checkpoints of before do not say: the ledger does
        stopping.load(saved["stopping"])
    known: dict[int, Candidate] = {}
    refused: dict[int, str | None] = {}
    rows = list(zip(saved["candidates"], unpack_genomes(saved["genomes"]), strict=True))
    begins = [int(begin) for begin in saved["begins"]]
    spaces: list[SearchSpace] = []
    for number, phase in enumerate(search.phases[: len(begins)]):
        winner = _of(known, saved["winners"][number])
        spaces.append(phase.space(winner.recipe if winner is not None else None))
        for (identity, parents, recipe_hash), genome in rows:
            if bisect_right(begins, identity) - 1 != number:
                continue
            candidate, why = decoded(int(identity), genome, tuple(map(int, parents)), spaces[-1])
            found = candidate.recipe.hash if candidate.recipe is not None else None
            if found != recipe_hash:
                raise ConfigError(f"candidate {identity} has recipe {found}, it had {recipe_hash}", "the same recipes")
            known[candidate.id], refused[candidate.id] = candidate, why
    number, space = len(spaces) - 1, spaces[-1]
    scores = {str(name): dict(values) for name, values in saved["scores"].items()}
    phase = search.phases[number]
    warm = begin_with(search.warm, space, number, search.incumbent.objectives[0], scores)
    aims = Aims.from_state(saved.get("aims"), known)
    strategy = strategy_of(phase, warm.started(space.spec), scores, aims, search.incumbent)
    strategy = informed(strategy, space, search.race)
    strategy.load_state_dict(saved["strategy"])
    first = list(warm.to_reevaluate[: phase.evaluations])
    pending = [known[int(identity)] for identity in saved["flight"]]
    winners = [_of(known, identity) for identity in saved["winners"]]
    search.incumbent.load(saved["incumbent"], known, list(scores.values()))
    current = PhaseState(
        phase,
        space,
        strategy,
        None if saved["limit"] is None else int(saved["limit"]),
        deque(first[len(first) - int(saved["first"]) :]),
        search.pending(strategy),
        asked=int(saved["asked"]),
        named=set(map(int, saved["named"])),
    )
    search.begin_from(
        SearchState(
            search.incumbent,
            search.state.leaders,
            phase=current,
            aims=aims,
            winners=winners,
            begins=begins,
            scores=dict(scores),
            spent=int(saved["spent"]),
            stopping=stopping,
            next_id=int(saved["next_id"]),
            counts={str(status): int(count) for status, count in saved["counts"].items()},
        )
    )
    search.state.leaders.load(saved.get("leaders", ()), known)
    if search.race is not None and saved.get("learnt") is not None:  # checkpoints of before do not say
        search.race.knowledge.relearn(int(saved["learnt"]))
    against = {int(number): int(other) for number, other in saved.get("against", ())}
    for candidate in pending:
        current.pending.submit(candidate, refused[candidate.id], against.get(candidate.id))


def _of(known: Mapping[int, Candidate], identity: Any) -> Candidate | None:
    return None if identity is None else known[int(identity)]


class CheckpointSaver:
    """Saves states of a search as its checkpoints; implements `evomerge.search.hooks.CheckpointHook`.

    A strategy whose state cannot be saved is a warning: its search has no checkpoints then.

    Args:
        checkpoints: says when, and writes them.
        ledger: of the search; a checkpoint says how much of it there was.
    """

    def __init__(self, checkpoints: Checkpoints, ledger: Ledger) -> None:
        self._checkpoints, self._ledger = checkpoints, ledger
        self._failed = False

    def __call__(self, state: SearchState, /, *, now: bool) -> None:
        """Save the state if it is time, or `now`."""
        told = sum(state.counts.values())
        due = self._checkpoints.wanted and (now or self._checkpoints.due(told))
        if self._failed or not due or not fits(state, self._ledger):
            return
        start = time.monotonic()
        try:
            content = capture(state, self._ledger)
        except Exception as error:  # strategies may be the user's
            self._failed = True
            _log.warning("there will be no checkpoints: %s: %s", type(error).__name__, error)
            return
        self._ledger.sync()  # a checkpoint is never ahead of what a power failure leaves of the ledger
        position = Position(len(self._ledger), self._ledger.nbytes)
        self._checkpoints.put(position, content, told, time.monotonic() - start)


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
            if search.race is not None:
                search.race.forget()
                for evaluation in ledger.evaluations(passed):
                    baseline = evaluation.candidate < int(found.state["begins"][0])
                    search.race.see(evaluation, baseline=baseline)
            restore(search, found.state)
        except Exception as error:  # strategies may be the user's, the checkpoint anybody's
            reason = str(error) if isinstance(error, EvomergeError) else f"{type(error).__name__}: {error}"
            _log.warning("checkpoint %d is left out: %s", found.position.lines, reason)
            continue
        ledger.skip(passed)
        ledger.resumed["checkpoint"] = found.position.lines
        return found.position
    return None
