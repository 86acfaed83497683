"""A pruner of Optuna's from its configuration: a short name, a mapping with arguments, or one with ``_target_``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)

from evomerge.candidate import Evaluation
from evomerge.config.construct import TARGET, build, check_arguments
from evomerge.errors import ConfigError, nearest
from evomerge.objectives import Objective
from evomerge.protocols import Estimator
from evomerge.search.racing.pruning import Pruning
from evomerge.search.racing.settings import Racing, counted

KEY = "search.racing.pruner"
PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "hyperband": HyperbandPruner,
    "median": MedianPruner,
    "percentile": PercentilePruner,
    "successive_halving": SuccessiveHalvingPruner,
    "threshold": ThresholdPruner,
    "wilcoxon": WilcoxonPruner,
}
_SOME = 1000  # items, while it is not known how many there are


def build_pruner(settings: Racing, total: int = _SOME) -> BasePruner:
    """Build what `search.racing.pruner` names, and let it decide about made-up trials once.

    What a name leaves out follows from the race: `hyperband` and `successive_halving` have rungs where it has steps,
    `percentile` lets `keep` go on, `wilcoxon` is as sure as `confidence` says. A ``_target_`` is built as it is.

    Args:
        settings: of the race, against a pruner.
        total: items of the fitness.

    Raises:
        ConfigError: no such name or class, or arguments that it does not have, refuses or cannot work with.
    """
    node = {"name": settings.pruner} if isinstance(settings.pruner, str) else settings.pruner
    if not isinstance(node, Mapping) or ("name" in node) == (TARGET in node):
        allowed = f"{', '.join(PRUNERS)}; {{name: wilcoxon, p_threshold: 0.1}}, or a mapping with {TARGET}"
        raise ConfigError(f"{KEY} is {settings.pruner!r}", allowed)
    steps = _steps(settings, total)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental parts announce themselves
        try:
            made = build(node, KEY) if TARGET in node else _named(dict(node), settings, steps, total)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{KEY} is {settings.pruner}: {str(error).rstrip('.')}",
                "arguments that the pruner takes",
                "see Optuna's documentation",
            ) from error
    if not isinstance(made, BasePruner):
        raise ConfigError(f"{KEY}.{TARGET} is {node[TARGET]!r}", "a class derived from optuna.pruners.BasePruner")
    _rehearse(made, counted(steps, total))
    return made


def check_items(pruner: BasePruner, estimator: Estimator | None) -> None:
    """Refuse a pruner that compares item by item where the fitness does not say what its items count.

    Raises:
        ConfigError: it does so, and there is no estimator.
    """
    if isinstance(pruner, WilcoxonPruner) and estimator is None:
        raise ConfigError(
            f"{KEY} compares item by item, and the fitness does not say what its items count",
            "a fitness with a method build_estimator(), as lm_eval's",
            f"set {KEY}=percentile",
        )


def _steps(settings: Racing, total: int) -> list[float]:
    """The race's steps, or any where it is not known yet how many items there are."""
    try:
        return settings.steps(total)
    except ConfigError:
        if total != _SOME:
            raise
        return [0.1, 0.5, 1.0]


def _named(node: dict[str, Any], settings: Racing, steps: list[float], total: int) -> BasePruner:
    name = node.pop("name")
    if not isinstance(name, str) or name not in PRUNERS:
        raise ConfigError(f"{KEY} is {name!r}", nearest(str(name), PRUNERS))
    kind = PRUNERS[name]
    return kind(**check_arguments(kind, {**_defaults(name, settings, steps, total), **node}, KEY))


def _defaults(name: str, settings: Racing, steps: list[float], total: int) -> dict[str, Any]:
    """Arguments that follow from the race."""
    least, factor = max(1, math.floor(steps[0] * total)), max(2, round(1 / settings.keep))
    if name == "hyperband":
        most = max(least, counted(steps, total)[-1])
        return {"min_resource": least, "max_resource": most, "reduction_factor": factor}
    if name == "successive_halving":
        return {"min_resource": least, "reduction_factor": factor}
    if name == "percentile":
        return {"percentile": 100 * settings.keep}
    return {"p_threshold": round(1 - settings.confidence, 12)} if name == "wilcoxon" else {}


def _rehearse(pruner: BasePruner, steps: list[int]) -> None:
    """Let a pruner decide where nothing is at stake, so that arguments that do not go together are seen early."""
    pruning = Pruning(pruner, Objective("score"), steps, None)
    race = {f"step/{step}": 0.5 for step in range(len(steps))}
    for number in range(8):
        pruning.see(Evaluation(number, "ok", objectives={"score": 0.5}, race={**race, "known": number}))
    pruning.prunes(8, [0.5], {}, 8)
