"""What models answered, kept in the run folder; and what is said of a model that answers nothing right."""

from __future__ import annotations

import logging
from typing import Any

from evomerge.candidate import Evaluation, Items, Responses, Split
from evomerge.protocols import Fitness
from evomerge.run.folder import RunFolder
from evomerge.run.responses import unanswered, write_responses
from evomerge.session.shares import metric_shares

_log = logging.getLogger(__name__)

_ADVICE = "look whether that is what the task asks for, and whether its right answers are read as they are meant"
"""On a fitness that has no `zero_hint`."""


class AnswerKeeper:
    """Writes down what models answered; implements `search.hooks.ResponseKeeper`.

    Args:
        folder: of the run.
        fitnesses: by split. One with an attribute ``keep_responses`` that is true has every candidate's answers kept;
            of the others only what is compared: baselines, each best so far, and all on held-out items.
    """

    def __init__(self, folder: RunFolder, fitnesses: dict[Split, Fitness | None]) -> None:
        self._folder = folder
        self._all = {split for split, fitness in fitnesses.items() if getattr(fitness, "keep_responses", False)}
        self._fitness = fitnesses["search"]
        self._better = gains(self._fitness) if self._fitness is not None else []
        self._models: dict[str, tuple[Responses, Items]] = {}

    def __call__(self, evaluation: Evaluation, name: str | None, /, *, compared: bool) -> None:
        """Keep an evaluation's answers, and once the models of the pool have theirs warn of what nobody answers."""
        if compared or evaluation.split in self._all:
            write_responses(self._folder, evaluation)
        if name is not None and evaluation.split == "search":
            self._models[name] = (evaluation.responses, evaluation.items)
        elif self._models:
            line = unanswered(self._models, self._better)
            self._models = {}
            if line:
                _log.warning("%s; %s", line, advice(self._fitness))


def advice(fitness: Any) -> str:
    """What to do about a model that scores 0 on every item: what a fitness, or each kind among several, says of it."""
    parts = getattr(fitness, "parts", None)
    each = dict.fromkeys(advice(part) for part in parts.values()) if parts else {}
    return "; ".join(each) or str(getattr(fitness, "zero_hint", _ADVICE))


def gains(fitness: Fitness) -> list[str]:
    """The metrics of a fitness of which more is better, as ``task/metric``; empty where it does not say."""
    return [share.metric for share in metric_shares(fitness) if share.direction == "maximize"]
