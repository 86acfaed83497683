"""Names in a protocol that mean its rows, its columns or its models: each is one of these, or is said to be none."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from evomerge.comparison.columns import columns_of
from evomerge.comparison.plan import Plan
from evomerge.comparison.settings import AVERAGE
from evomerge.config.construct import to_builtin
from evomerge.errors import ConfigError, FitnessError
from evomerge.protocols import Fitness
from evomerge.recipes.pool_info import UNIFORM
from evomerge.session.shares import metric_shares

_LIKE = 0.8
_SHOWN = 8


def check_named(plan: Plan, test: Fitness) -> list[str]:
    """Check the names in ``published``, ``experts`` and ``forgetting``.

    A name that is like one of ours, and ours is not there, is a slip. Others may stand in a published table alone, and
    are said: they have no number of ours beside them. Where the command line took rows or tasks out, nothing is said.

    Args:
        plan: of the protocol.
        test: the fitness of its test; `check` comes before.

    Returns:
        Lines about names that are none of the protocol's.

    Raises:
        ConfigError: a slip; names the key.
    """
    changed = {word.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0] for word in plan.overrides}
    protocol, said = plan.protocol, list[str]()
    models = list(to_builtin(plan.config.pool.models) or {})
    columns: list[str] = []
    if not changed & {"fitness", "held_out", "protocol"}:
        try:
            columns = [own.name for own in columns_of(metric_shares(test), test.objectives, "the test")]
        except FitnessError:
            columns = []  # a fitness of one's own that says nothing by task
    tasks = list(dict.fromkeys([*columns, *(name.partition(" ")[0] for name in columns)]))
    # A stand-in stands beside the table of the models that it stands for.
    if protocol.published is not None and protocol.stand_in is None and not changed & {"protocol", "pool"}:
        key = "protocol.published.rows"
        said += _unknown(f"{key} has", list(protocol.published.rows), rows_of(plan, models), "row")
        if columns:
            named = [column for numbers in protocol.published.rows.values() for column in numbers]
            said += _unknown(f"{key} has column", list(dict.fromkeys(named)), [*columns, AVERAGE], "column")
    if tasks:
        said += _unknown("protocol.experts has task", list(protocol.experts), tasks, "task of the test")
        said += _unknown("protocol.forgetting has task", list(protocol.forgetting), tasks, "task of the test")
    if models and "pool" not in changed:
        said += _unknown("protocol.experts has source", list(protocol.experts.values()), models, "model of the pool")
    return said


def rows_of(plan: Plan, models: Sequence[str]) -> list[str]:
    """The names of all rows that the table of a protocol may have."""
    protocol = plan.protocol
    named = [name for own in protocol.methods for name in (own.name, f"{own.name}, tuned")]
    named += [name for own in protocol.searches for name in (own.name, *(f"{own.name}, {p}" for p in own.preferences))]
    return [*models, UNIFORM, *named, *protocol.grid_members]


def _unknown(what: str, given: Sequence[str], ours: Collection[str], kind: str) -> list[str]:
    left = [name for name in ours if name not in given]
    lines = []
    for name in dict.fromkeys(given):
        if name in ours:
            continue
        like = difflib.get_close_matches(name, left, n=1, cutoff=_LIKE)
        if like:
            raise ConfigError(f"{what} {name!r}, which is no {kind} here", f"did you mean {like[0]!r}?")
        shown = ", ".join(list(ours)[:_SHOWN]) + (f" and {len(ours) - _SHOWN} more" if len(ours) > _SHOWN else "")
        lines.append(f"{what} {name!r}, which is no {kind} here: nothing of ours stands beside it; there are {shown}")
    return lines
