"""Whether a run that has ended may go on: with a larger budget, or where the rule that ended it has changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.config.construct import to_builtin
from evomerge.config.resume_command import resume_command
from evomerge.run.folder import RunFolder
from evomerge.run.record import Record
from evomerge.search.stopping import RULES


def rules_of(config: Any) -> dict[str, Any]:
    """The rules of a configuration's ``search`` that are set, by name."""
    found = {name: to_builtin(config.search.get(name)) for name in RULES}
    return {name: value for name, value in found.items() if value is not None}


def has_ended(record: Record, rules: Mapping[str, Any], evaluations: int, budget: int) -> bool:
    """Whether a run has come to its end and there is nothing more to do.

    Args:
        record: of its ledger.
        rules: what ends it early by now.
        evaluations: its budget by now.
        budget: evaluations that it was last given.
    """
    if not record.finished or not record.first("started"):
        return False
    stopped = record.last("stopped") or {}
    rule = stopped.get("rule")
    if rule not in RULES:
        return evaluations <= budget
    limit, before = rules.get(rule), stopped.get("limit")
    if rule == "hours":
        return limit is not None and 3600 * float(limit) <= record.clock.seconds
    if rule == "patience":
        return limit is not None and isinstance(before, int) and limit <= before
    return limit is not None and _same(limit, before)


def how_to_go_on(run: str | Path) -> str:
    """That a run has ended, and the command that goes on with it, to be shown."""
    record = Record(RunFolder.open(run))
    rule, command = (record.last("stopped") or {}).get("rule"), resume_command(run)
    record.close()
    if rule == "hours":
        took = f"{record.clock.seconds / 3600:.3g}"
        return f"{run} was ended by search.hours after {took}; `{command} search.hours=N` goes on to N hours in all"
    if rule == "patience":
        return f"{run} was ended by search.patience; `{command} search.patience=N` goes on until N without improvement"
    if rule == "target":
        return f"{run} has reached search.target; `{command} search.target=N` goes on to another"
    return f"{run} is finished; `{command} search.evaluations=N` goes on to N evaluations"


def _same(target: Any, before: Any) -> bool:
    """Whether targets are equal, of which the first may be the number of an only objective."""
    if isinstance(target, int | float) and isinstance(before, Mapping):
        return [target] == list(before.values())
    return bool(target == before)
