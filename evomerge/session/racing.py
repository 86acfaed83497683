"""The race of a search from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError
from evomerge.objectives import Objective
from evomerge.protocols import Estimator, Fitness, Strategy
from evomerge.search.racing.knowledge import Knowledge
from evomerge.search.racing.race import Race
from evomerge.search.racing.settings import AUTO, Racing

_FINALISTS = 8
_MOST_FINALISTS = 10_000
_SOME = 1  # items, while it is not known how many a race begins with


def race_settings(config: Config) -> Racing | None:
    """What is asked of the race; ``None`` for none. Where `first` is ``auto``, as if there was one.

    Raises:
        ConfigError: a key out of its range, naming it.
    """
    asked: dict[str, Any] = to_builtin(config.search.racing)
    if asked["first"] is not None:
        first, most = asked["first"], asked["most"]
        return Racing(**{**asked, "first": _SOME if first == AUTO else first, "most": 1.0 if most == AUTO else most})
    if asked["pruner"] is not None:
        raise ConfigError(
            "search.racing.pruner is set, and search.racing.first is null",
            "a race, of which a pruner is the judge",
            "set search.racing.first=0.1, or search.racing.pruner=null",
        )
    return None


def check_race(config: Config) -> None:
    """Check what is asked of the race as far as it can be seen without a fitness.

    Raises:
        ConfigError: as for `race_settings` and `build_pruner`.
    """
    settings = race_settings(config)
    if settings is not None and settings.against == "pruner":
        from evomerge.session.pruners import build_pruner

        build_pruner(settings)


def build_race(
    config: Config, fitness: Fitness, strategies: Sequence[Strategy], cheap: Fitness | None = None
) -> Race | None:
    """The race of a search; ``None`` for none. The fitness must have been checked.

    With a cheap rung there always is one: where the configuration has no other steps, those that the rung lets go on
    are scored on all items.

    Args:
        config: of the experiment.
        fitness: of the search.
        strategies: of its phases.
        cheap: of the cheap rung; ``None`` where there is no such rung.

    Raises:
        ConfigError: it is asked for more items than there are; the fitness, the objectives or a strategy allow none.
    """
    settings = race_settings(config)
    if settings is None and cheap is None:
        return None
    key = "cheap" if cheap is not None else "search.racing.first"
    undo = "fitness@cheap=null" if cheap is not None else "search.racing.first=null"
    items = items_of(fitness)
    if items is None:
        raise ConfigError(
            f"{key} is set, and the fitness cannot be asked for some of its items",
            "a fitness with a method items() whose run takes a part, as lm_eval's",
            f"set {undo}",
        )
    if settings is None:
        asked: dict[str, Any] = to_builtin(config.search.racing)
        settings = Racing(**{**asked, "first": float(sum(items.values())), "most": 1.0})
    objectives = tuple(fitness.objectives)
    decides = _decides(cheap, objectives, settings) if cheap is not None else None
    if settings.against != "none" and len(objectives) > 1 and config.search.scalarise is None:
        raise ConfigError(
            f"search.racing.against is {settings.against} and there are {len(objectives)} objectives",
            "a race is decided by one number",
            "set search.racing.against=none: all candidates are then scored on as many items",
        )
    for strategy in strategies:
        if not getattr(strategy, "estimates", True):
            raise ConfigError(
                f"{key} is set, and strategy {type(strategy).__name__} needs the scores of all items",
                "a strategy that learns from objectives alone",
                f"set {undo}, or take another strategy",
            )
    if settings.against == "generation" and (not config.search.ordered or config.search.in_flight is not None):
        raise ConfigError(
            "search.racing.against is generation, and candidates do not come by generations",
            "search.ordered=true and search.in_flight=null",
            "set search.racing.against=incumbent" if cheap is None else f"set {undo}",
        )
    builder: Callable[[], Estimator] | None = getattr(fitness, "build_estimator", None)
    whole = cheap is not None and settings.steps(sum(items.values())) == [1.0]  # then nothing is estimated
    estimator: Any = builder() if builder is not None and not whole else None
    if settings.against == "incumbent" and estimator is None:
        raise ConfigError(
            "search.racing.against is incumbent, and the fitness does not say what its items count",
            "a fitness with a method build_estimator(), as lm_eval's",
            "set search.racing.against=none",
        )
    pruner: Any = None
    if settings.against == "pruner":
        from evomerge.session.pruners import build_pruner, check_items

        pruner = build_pruner(settings, sum(items.values()))
        check_items(pruner, estimator)
    return Race(settings, items, Knowledge(estimator, objectives), objectives, config.search.seed, pruner, decides)


def _decides(cheap: Fitness, objectives: Sequence[Objective], settings: Racing) -> Objective:
    """The objective of the cheap rung's fitness.

    Args:
        cheap: it.
        objectives: of the search.
        settings: of the race.

    Raises:
        ConfigError: it or the search has several objectives; people give its scores; candidates do not race against
            their generation.
    """
    own = tuple(cheap.objectives)
    if len(own) > 1:
        raise ConfigError(
            f"cheap has objectives {', '.join(objective.name for objective in own)}",
            "one, by which a generation is ranked",
            "leave the others out, or make one number of them by weights of metrics",
        )
    if len(objectives) > 1:
        raise ConfigError(
            f"cheap is set, and there are {len(objectives)} objectives",
            "one, of which the rung's scores are estimates",
            "set fitness@cheap=null",
        )
    if hasattr(cheap, "rating"):
        raise ConfigError("cheap is a fitness that people rate", "one that costs little: lm_eval, unlabelled")
    if settings.against != "generation":
        raise ConfigError(
            f"cheap is set, and search.racing.against is {settings.against}",
            "generation: the rung compares the candidates of one",
            "set search.racing.against=generation, or fitness@cheap=null",
        )
    return own[0]


def items_of(fitness: Fitness) -> Mapping[str, int] | None:
    """How many items each task has; ``None`` where a fitness cannot be asked for some of them."""
    count: Callable[[], Mapping[str, int]] | None = getattr(fitness, "items", None)
    return None if count is None else count()


def count_finalists(config: Config, objectives: Sequence[Objective], raced: bool) -> int:
    """How many candidates are scored on all items in the end.

    Raises:
        ConfigError: a number out of range, or several objectives, of which none decides.
    """
    asked = config.search.finalists
    if asked is None:
        return _FINALISTS if (raced or config.validation is not None) and len(objectives) == 1 else 0
    if not 0 <= asked <= _MOST_FINALISTS:
        raise ConfigError(f"search.finalists is {asked}", f"0 to {_MOST_FINALISTS:,}, or null")
    if asked and len(objectives) > 1:
        raise ConfigError(
            f"search.finalists is {asked} and there are {len(objectives)} objectives",
            "a winner among finalists is chosen by one objective",
            "set search.finalists=0: the Pareto front stays as it is",
        )
    return asked


def check_validation(config: Config, objectives: Sequence[Objective], validation: Fitness | None) -> None:
    """Check that a winner can be chosen by the fitness of the finalists.

    Args:
        config: of the experiment.
        objectives: of the search.
        validation: the finalists' own fitness; ``None`` for none.

    Raises:
        ConfigError: there are no finalists, no held-out items or several objectives, or it does not have the objective
            of the search.
    """
    if validation is None:
        return
    if config.search.finalists == 0 or len(objectives) > 1:
        what = "search.finalists is 0" if config.search.finalists == 0 else f"there are {len(objectives)} objectives"
        raise ConfigError(
            f"validation is set, and {what}",
            "finalists, of which one objective chooses the winner on its items",
            "set search.finalists=8, or validation=null",
        )
    if config.held_out is None:
        raise ConfigError(
            "validation is set, and held_out is null",
            "held-out items: on those of the finalists the winner is the luckiest, and nobody else was scored there",
            "set fitness@held_out=lm_eval held_out.tasks=[...], or validation=null",
        )
    if objectives[0] not in validation.objectives:
        have = ", ".join(f"{objective.name} ({objective.direction})" for objective in validation.objectives)
        raise ConfigError(
            f"validation has {have}, and the search has {objectives[0].name} ({objectives[0].direction})",
            "the objective of the search, on other items",
        )
