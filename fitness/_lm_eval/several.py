"""A fitness of lm-eval tasks as those see it who score several models at once. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from evomerge.protocols import Scores

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel, Several
    from fitness._lm_eval.loading import TaskSet
    from fitness._lm_eval.objective import WeighedTerm
    from fitness._lm_eval.prepared import Prepared


class ScoresSeveral:
    """Scores several models that are one module."""

    _terms_weighed: list[WeighedTerm]
    _generators: Any
    _response_length: bool

    def run_several(
        self, model: LoadedModel, several: Several, part: Part | None = None
    ) -> list[Scores | FitnessError]:
        """`run` of each of several models; of one that has no score, why.

        Log-likelihoods of all of them take one forward where forwards are shared; the rest is one model after the
        other, with nothing merged in between.
        """
        from fitness._lm_eval.several_models import several_scores

        return several_scores(self._ready(), model, several, part, *self._how())

    def _how(self) -> tuple[TaskSet, list[WeighedTerm], Any, bool]:
        """What scores are made of beside what models say."""
        return self._loaded(), self._terms_weighed, self._generators, self._response_length

    def _loaded(self) -> TaskSet:
        raise NotImplementedError

    def _ready(self) -> Prepared:
        raise NotImplementedError
