"""Whether a search races, where ``search.racing.first: auto`` leaves that to what is searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError, EvomergeError
from evomerge.protocols import Fitness, SearchSpace, Strategy
from evomerge.report.formatting import count
from evomerge.search.racing.race import Race
from evomerge.search.racing.settings import AUTO, Racing, counted
from evomerge.session.racing import build_race, count_finalists, items_of
from evomerge.session.refining import after_how_many, refined_share, settled

FIRST = 24
"""Items at first, at least. The share of right answers among so many has a standard error of 0.1 at most; on the demo
races that began with 24 found winners as good as scores on all of 750 items (docs/strategies.md)."""

SHARE = 0.032
"""Of all items at first, where that is more: the same share of more items tells candidates apart that are nearer."""

OF_A_TASK = 2
"""Items of every task at first: with fewer nothing is known of how much a task's own items differ."""

MOST = 3.75
"""Items of the best, by those at first: on the demo 90 after 24."""

LEAST_SAVED = 0.75
"""Of a candidate's items. A race from 24 to 90 scores a candidate on 46.5 on average, a quarter of 186: of fewer items
most would be needed to tell candidates apart, and exact scores would be given up for little."""

MOST_FIXED = 0.5
"""Of a candidate's forwards, those that are the same whatever its items, as of the documents that queries look for:
beyond it a race saves little and knows less."""

LEAST_SAVED_IN_ALL = 0.5
"""Of the items of the whole search, finalists on all items included."""


@dataclass(frozen=True)
class RaceChoice:
    """What `search.racing.first: auto` came to.

    Attributes:
        items: of the fitness; 0 where it does not say.
        first: items that every candidate is scored on; 0 where there is no race.
        most: items that the best are scored on.
        refined: candidates after which a Gaussian process proposes; 0 where it does not.
        because: what stands against a race, in a word: ``fitness``, ``objectives``, ``strategy``, ``order``,
            ``finalists``, ``target``, ``items``, ``evaluations``, ``estimator``; empty where there is one.
        reason: the same in words.
        rung: whether a cheap rung says who is scored at all.
    """

    items: int = 0
    first: int = 0
    most: int = 0
    refined: int = 0
    because: str = ""
    reason: str = ""
    rung: bool = False

    @property
    def event(self) -> dict[str, Any]:
        """Fields of the ``started`` event."""
        if self.because:
            return {"items": self.items, "because": self.because, "reason": self.reason}
        more = {"refined": self.refined} if self.refined else {}
        return {"items": self.items, "first": self.first, "most": self.most, **more}

    def __str__(self) -> str:
        if self.because:
            return f"no race: {self.reason}"
        who = "whoever goes on from the cheap rung" if self.rung else "every candidate"
        after = f"; after {self.refined} a Gaussian process proposes, each on {self.most}" if self.refined else ""
        return f"a race: {who} on {self.first} of {count(self.items, 'item')}, the best on {self.most}{after}"


def chosen_race(
    config: Config,
    fitness: Fitness,
    strategies: Sequence[Strategy],
    cheap: Fitness | None = None,
    spaces: Sequence[SearchSpace] = (),
) -> tuple[Race | None, RaceChoice | None]:
    """The race of a search, and what was chosen where that was left open. The fitness must have been checked.

    With a cheap rung (`cheap`), those that it lets go on are scored on all items where nothing but numbers stands
    against a race on fewer. ``search.refine.after: auto`` is settled with the race: a number in one that is chosen
    without such a rung, else none.

    The configuration itself is changed: the run keeps what was chosen, and goes on with that whatever becomes of its
    budget, of its items or of these rules.

    Raises:
        ConfigError: as for `build_race`, of what the user has asked for; a cheap rung where no race can be.
    """
    asked, refine = config.search.racing, config.search.refine
    left_open = refine.after == AUTO
    refine.after = None if left_open else refine.after
    if asked.first != AUTO:
        asked.most = 1.0 if asked.most == AUTO else asked.most
        return build_race(config, fitness, strategies, cheap), None
    refined = after_how_many(config, spaces) if left_open else settled(config)
    choice, settings = _choice(config, fitness, strategies, refined)
    if settings is not None:
        asked.first, asked.most = settings.first, settings.most
        try:
            race = build_race(config, fitness, strategies, cheap)
            refine.after = refined
            return race, replace(choice, rung=cheap is not None)
        except EvomergeError as error:
            choice = RaceChoice(choice.items, because="estimator", reason=error.given)
    asked.first, asked.most = None, 1.0
    if asked.pruner is not None:
        asked.against, asked.pruner = "generation", None
    if cheap is not None and choice.because == "strategy":
        raise ConfigError(
            f"cheap is set, and {choice.reason}",
            "a race of generations, of which it is the first rung",
            "take strategy=cma_es, set search.racing.first=null for all items after the rung, or fitness@cheap=null",
        )
    return (build_race(config, fitness, strategies, cheap) if cheap is not None else None), choice


def _choice(
    config: Config, fitness: Fitness, strategies: Sequence[Strategy], refined: int | None
) -> tuple[RaceChoice, Racing | None]:
    """What follows from items, objectives, strategies and the budget, and the race's settings where there is one."""
    found = _standing_against(config, fitness, strategies)
    if found is not None:
        return RaceChoice(because=found[0], reason=found[1]), None
    items = items_of(fitness)
    assert items is not None
    total, evaluations = sum(items.values()), config.search.evaluations
    few = RaceChoice(total, because="items", reason=f"of {count(total, 'item')} too many would be needed at first")
    settings = _settings(config, total, len(items))
    if settings is None:
        first, most = _fewest(total, len(items)), config.search.racing.most
        if most == AUTO or first > total:
            return few, None
        reason = f"search.racing.most={most:g} is not between {first}, the items at first, and {total}, all items"
        return replace(few, reason=reason), None
    each = settings.expected_items(total)
    if each > (1 - LEAST_SAVED) * total:
        return few, None
    finalists = count_finalists(config, tuple(fitness.objectives), raced=True) + 1  # and the strategy's favourite
    each = settings.expected_items(total, refined_share(config, refined))
    if evaluations * each + finalists * total > (1 - LEAST_SAVED_IN_ALL) * evaluations * total:
        reason = f"{count(evaluations, 'evaluation')} would not make up for {finalists} on all items in the end"
        return RaceChoice(total, because="evaluations", reason=reason), None
    steps = counted(settings.steps(total), total)
    shown = refined if refined is not None and refined < evaluations else 0
    return RaceChoice(total, steps[0], steps[-1], shown), settings


def _fewest(total: int, tasks: int) -> int:
    """Items that every candidate is scored on."""
    return max(FIRST, round(SHARE * total), OF_A_TASK * tasks)


def _settings(config: Config, total: int, tasks: int) -> Racing | None:
    """The user's settings with numbers of items; ``None`` where there are not as many."""
    asked: dict[str, Any] = to_builtin(config.search.racing)
    first = _fewest(total, tasks)
    most = math.ceil(MOST * first) if asked["most"] == AUTO else asked["most"]
    settings = Racing(**{**asked, "first": first, "most": most})
    try:
        settings.steps(total)
    except ConfigError:
        return None
    return settings


def _standing_against(config: Config, fitness: Fitness, strategies: Sequence[Strategy]) -> tuple[str, str] | None:
    """What of the experiment allows no race, whatever the number of its items: in a word, and in words."""
    search, objectives = config.search, tuple(fitness.objectives)
    if items_of(fitness) is None or getattr(fitness, "build_estimator", None) is None:
        return "fitness", "the fitness does not tell from some items what all would give"
    fixed = fitness.fixed_share() if hasattr(fitness, "fixed_share") else 0.0
    if fixed > MOST_FIXED:
        return "fitness", f"{fixed:.0%} of a candidate's forwards are the same whatever items it is scored on"
    if len(objectives) > 1:
        return "objectives", f"there are {len(objectives)} objectives, and one number decides a race"
    by_generation = search.racing.against == "generation"
    for strategy in strategies:
        name = type(getattr(strategy, "inner", strategy)).__name__
        if not getattr(strategy, "estimates", True):
            return "strategy", f"strategy {name} needs the scores of all items"
        if by_generation and not getattr(strategy, "by_generation", False):
            return "strategy", f"strategy {name} keeps candidates for as long as their scores are good, lucky ones too"
    if by_generation and (not search.ordered or search.in_flight is not None):
        return "order", "candidates do not come by generations"
    if search.finalists == 0:
        return "finalists", "search.finalists is 0, and the winner of a race is chosen among them"
    if search.target is not None:
        return "target", "search.target is a score on all items"
    return None
