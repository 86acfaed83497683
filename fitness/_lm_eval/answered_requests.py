"""Sessions whose requests another program answers: all of a candidate's at once, by lm-eval's own model for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.candidate import Part
from fitness._lm_eval.document_errors import require_finite
from fitness._lm_eval.isolation import unlogged
from fitness._lm_eval.scoring import RawValues
from fitness._lm_eval.task_requests import TaskRequests

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel


@dataclass
class Answers:
    """What a model answered for one candidate.

    Attributes:
        by_kind: by request type, one for each of its requests.
        seconds: spent in the model.
    """

    by_kind: dict[str, list[Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, kind: str, answers: list[Any], seconds: float) -> None:
        """Take in those of a type."""
        self.by_kind[kind] = answers
        self.seconds += seconds


class AnsweredRequests(TaskRequests):
    """The requests of tasks, and a model that has ``rebind(model)``, ``answer(kind, instances, requests)`` and
    ``max_length``.

    Attributes:
        shares: no: what `Session` shares is the other program's own business.
    """

    shares = False

    def score(self, model: LoadedModel, places: Part, raw: dict[str, RawValues]) -> tuple[float, dict[str, float]]:
        """Score the documents at `places` into `raw`; returns the seconds spent in the model, and the tokens.

        Raises:
            FitnessError: a score that is not finite, naming the task and document.
        """
        self._lm.rebind(model)
        answered = Answers()
        for kind, instances in self._by_type(places).items():
            with unlogged():  # what it warns of it would say for every candidate
                answers, spent = self._lm.answer(kind, instances, self.requests)
            answered.add(kind, answers, spent)
        return self.take(places, answered, raw)

    def take(self, places: Part, answered: Answers, raw: dict[str, RawValues]) -> tuple[float, dict[str, float]]:
        """`score`, of what was answered already."""
        tokens = 0
        for kind, instances in self._by_type(places).items():
            for instance in instances:
                instance.resps, instance.filtered_resps = [], {}
            answers = answered.by_kind[kind]
            if kind != "generate_until":
                values = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
                require_finite(np.array(values, dtype=np.float64), instances)
            for instance, answer in zip(instances, answers, strict=True):
                instance.resps.append(answer)
                tokens += sum(len(r.context) + len(r.continuation) for r in self.requests.get(id(instance), ()))
        for name, of_task in places.items():
            if of_task:
                self._scorers[name].collect(of_task, raw.setdefault(name, {}))
        return answered.seconds, {"run": tokens, "stock": tokens}

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Score as lm-eval does within this: as always."""
        yield
