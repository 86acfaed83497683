"""How many of the items candidates are scored on, and which of them go on to more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from evomerge.errors import ConfigError, nearest

AUTO = "auto"
"""Of numbers of items: chosen by what there is (`evomerge.session.race_choice`)."""

Against = Literal["generation", "incumbent", "pruner", "none"]


@dataclass(frozen=True)
class Racing:
    """A race: every candidate is scored on some items first, those that may win on more.

    Attributes:
        first: items that every candidate is scored on: a number, or a share of all below 1.
        against: whom a candidate has to beat to be scored on more. ``generation``: the best `keep` of its generation go
            on, so that all of a generation are compared on the same items (successive halving; Jamieson and Talwalkar,
            arXiv 1502.07943). ``incumbent``: whoever may still be better than the best so far, or than whom the
            strategy says must be beaten, item by item. ``pruner``: whoever a pruner of Optuna's lets go on. ``none``:
            nobody goes on.
        keep: share of a generation that goes on, and of a step's items that the step before had.
        most: items that the best are scored on, as `first`; 1.0 for all.
        rotate: whether each generation begins behind the items that the last one began with.
        confidence: with which a candidate must be worse than the incumbent to be pruned.
        pruner: which, as the configuration says it: a name, a mapping with ``name`` and arguments, or with
            ``_target_``.
        keep_cheap: share of a generation that goes on from the cheap rung, where there is one.
    """

    first: float
    against: Against = "generation"
    keep: float = 0.5
    most: float = 1.0
    rotate: bool = True
    confidence: float = 0.95
    pruner: str | Mapping[str, Any] | None = None
    keep_cheap: float = 0.5

    def __post_init__(self) -> None:
        for name in ("first", "most"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0 and (value <= 1 or value == int(value))):
                allowed = "a share of the items up to 1, or a number of them"
                raise ConfigError(f"search.racing.{name} is {value}", allowed)
        if self.against not in get_args(Against):
            raise ConfigError(f"search.racing.against is {self.against!r}", nearest(self.against, get_args(Against)))
        if not 0.1 <= self.keep <= 0.9:
            raise ConfigError(f"search.racing.keep is {self.keep}", "0.1 to 0.9, a share of a generation")
        if not 0.1 <= self.keep_cheap <= 0.9:
            allowed = "0.1 to 0.9, a share of a generation"
            raise ConfigError(f"search.racing.keep_cheap is {self.keep_cheap}", allowed)
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"search.racing.confidence is {self.confidence}", "0.5 to below 1, a probability")
        if self.against == "pruner" and self.pruner is None:
            raise ConfigError(
                "search.racing.against is pruner, and search.racing.pruner is null",
                "a pruner's name, or a mapping",
                "set search.racing.pruner=wilcoxon",
            )
        if self.against != "pruner" and self.pruner is not None:
            raise ConfigError(
                f"search.racing.pruner is set, and search.racing.against is {self.against}",
                "a pruner decides alone",
                "set search.racing.against=pruner, or search.racing.pruner=null",
            )

    def steps(self, total: int) -> list[float]:
        """Shares of all items that a candidate has been scored on after each step, the last one the most.

        Raises:
            ConfigError: more items than there are, or fewer at most than at first.
        """
        first, most = (_share(getattr(self, name), total, name) for name in ("first", "most"))
        if self.against == "none":
            return [first]
        if most < first:
            raise ConfigError(
                f"search.racing.most is {self.most:g} and search.racing.first {self.first:g}",
                "at most as many items at first as in the end",
            )
        found = [first]
        while found[-1] < most - 1e-9:
            found.append(min(most, found[-1] / self.keep))
        return found

    def expected_items(self, total: int) -> float:
        """Items that a candidate is scored on, on average, where the best `keep` go on at every step."""
        found, before, share = 0.0, 0, 1.0
        for items in counted(self.steps(total), total):
            found += share * (items - before)
            before, share = items, share * self.keep
        return found


def counted(steps: Sequence[float], total: int) -> list[int]:
    """Shares of all items as numbers of items, the same for every candidate, wherever its items begin."""
    return [max(1, round(share * total)) for share in steps]


def _share(value: float, total: int, name: str) -> float:
    if value < 1 or (value == 1 and name == "most"):
        return float(value)
    if value > total:
        raise ConfigError(f"search.racing.{name} is {value:g}", f"at most {total}, the items of the fitness")
    return value / total
