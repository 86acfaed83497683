"""Settings that make a result hard to trust, or a search slower than it need be: said before it begins."""

from __future__ import annotations

from rich.text import Text

from evomerge.config.schema import Config
from evomerge.report.plain_console import errors
from evomerge.session.parts import Parts


def warn_settings(config: Config, parts: Parts) -> None:
    """Warn of settings that make the result hard to trust."""
    for caution in parts.fitness.cautions():
        _warn(caution, "bold yellow")
    slots, ordered = parts.evaluator.slots, config.search.ordered
    if ordered and config.search.in_flight is None and slots > 1 and getattr(parts.strategy, "asynchronous", False):
        _warn(
            f"in order, the strategy's own batch is evaluated at a time, which may leave some of "
            f"{slots} workers idle; set search.in_flight={slots}, or search.ordered=false"
        )
    if config.held_out is None:
        _warn(
            "there is no held-out fitness: the best score will be that of the items it was "
            "chosen on; set one with fitness@held_out=lm_eval held_out.tasks=[...]"
        )


def _warn(text: str, style: str = "yellow") -> None:
    errors.print(Text.assemble(("warning:", style), f" {text}"))
