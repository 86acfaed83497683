"""Optuna's pruners as judges of a race: what each of them is shown of a candidate and of those told before it.

Akiba et al., "Optuna" (arXiv 1907.10902). Pruners read the trials of a study. Here the trials are candidates: the one
in question, and those that had been told when it was asked, in the order in which they were told. A decision depends
on nothing else, whoever arrives meanwhile: each is made anew, by a copy of the pruner as it was built, from values that
no estimator has learnt to tell. So nothing needs saving, and all follows from the ledger.
"""

from __future__ import annotations

import copy
import datetime
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, WilcoxonPruner
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.candidate import Evaluation, Items
from evomerge.errors import ConfigError
from evomerge.objectives import Objective
from evomerge.protocols import Estimator

optuna.logging.set_verbosity(optuna.logging.ERROR)

_STUDY = "race"  # Hyperband's brackets follow from this name and a candidate's number
_BEGUN = datetime.datetime(2000, 1, 1)  # pruners that look at the clock would not decide alike again


class Pruning:
    """Decides by a pruner of Optuna's who goes on.

    Pruners are told of each step the first objective on the items so far (`Estimator.by_item`), under the number of
    items that the step has. `WilcoxonPruner` is told instead of every item what it adds, under the item's place among
    all: it compares item by item with the best candidate that was scored on all that one can be scored on.

    Args:
        pruner: as it is built; it is copied for each decision.
        objective: the first of the fitness.
        steps: how many items a candidate has been scored on after each step.
        estimator: says what items add; ``None`` where the fitness has none, which `WilcoxonPruner` cannot do without.
    """

    def __init__(
        self, pruner: BasePruner, objective: Objective, steps: Sequence[int], estimator: Estimator | None
    ) -> None:
        self.by_item = isinstance(pruner, WilcoxonPruner)
        self._pruner, self._objective, self._steps, self._estimator = pruner, objective, list(steps), estimator
        self._storage = _Trials(objective)
        direction = optuna.study.StudyDirection[objective.direction.upper()]
        self._study = optuna.create_study(
            storage=self._storage, study_name=_STUDY, direction=direction, pruner=copy.deepcopy(pruner)
        )
        self.forget()

    def forget(self) -> None:
        """Know no trial."""
        self._storage.told = []
        self._reference: Items | None = None
        self._best: float | None = None

    @property
    def told(self) -> int:
        """How many trials there are."""
        return len(self._storage.told)

    def value(self, items: Items, plain: Mapping[str, float]) -> float:
        """The first objective on the items that were run, whatever an estimator has learnt.

        Args:
            items: values, NaN where an item was not run.
            plain: the objectives of the parts, for a fitness without an estimator.
        """
        if self._estimator is None:
            return plain[self._objective.name]
        found = self._estimator.by_item(items, items)[self._objective.name]
        return float(sum(np.nanmean(values) for values in found.values()))

    def see(self, evaluation: Evaluation, *, baseline: bool = False) -> None:
        """Take in an evaluation of the search's items: one that has raced is a trial."""
        if evaluation.items and self._reference is None:
            self._reference = evaluation.items
        race = evaluation.race
        value = evaluation.objectives.get(self._objective.name)
        if baseline or value is None or "known" not in race or evaluation.status not in ("ok", "pruned"):
            return
        steps = sum(name.startswith("step/") for name in race)
        values = [race[f"step/{step}"] for step in range(steps)]
        trial = self._trial(evaluation.candidate, values, int(race["known"]))
        trial.state, trial.values = TrialState.PRUNED, [value]
        if evaluation.status == "ok":
            trial.state = TrialState.COMPLETE
            if self._best is None or self._objective.gain(value) > self._best:
                self._best = self._objective.gain(value)
                if self.by_item:  # of others nobody asks for the items
                    trial.intermediate_values = self._items(evaluation.items)
        self._storage.told.append(trial)

    def prunes(self, candidate: int, values: Sequence[float], items: Items, known: int) -> bool:
        """Whether a candidate is scored on no more items.

        Args:
            candidate: its number.
            values: after each step so far the first objective on its items.
            items: the values of those items; NaN where one was not run.
            known: how many of the trials it is compared with, the first ones.
        """
        if self.by_item:
            return self._decide(_trial(candidate, self._items(items)), known)
        trial = self._trial(candidate, values[:-1], known)
        trial.intermediate_values[self._steps[len(values) - 1]] = values[-1]
        return self._decide(trial, known)

    def _trial(self, candidate: int, values: Sequence[float], known: int) -> FrozenTrial:
        """A trial as the pruner has left it after these steps.

        Pruners note on trials what they compare later ones with: successive halving, the rungs that they came to.
        """
        trial = _trial(candidate, {})
        for step, value in enumerate(values) if not self.by_item else ():
            trial.intermediate_values[self._steps[step]] = value
            if step < len(self._steps) - 1:  # nothing is decided after the last
                self._decide(trial, known)
        return trial

    def _decide(self, trial: FrozenTrial, known: int) -> bool:
        self._storage.show(trial, known)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # trials whose items are lost
                pruned = bool(copy.deepcopy(self._pruner).prune(self._study, trial))
        except Exception as error:  # pruners may be the user's
            raise ConfigError(
                f"search.racing.pruner cannot decide: {type(error).__name__}: {error}",
                "arguments that go with each other",
                "see the pruner's own documentation",
            ) from error
        trial.system_attrs = dict(self._storage.shown.system_attrs)
        return pruned

    def _items(self, items: Items) -> dict[int, float]:
        """By place what each item that was run adds; the mean over all is the objective."""
        if not items or self._estimator is None or self._reference is None:
            return {}
        found = self._estimator.by_item(items, self._reference)[self._objective.name]
        total = sum(len(values) for values in found.values())
        row = np.concatenate([values * (total / len(values)) for values in found.values()])
        return {int(place): float(row[place]) for place in np.flatnonzero(np.isfinite(row))}


def _trial(number: int, values: dict[int, float]) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=_BEGUN,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values=values,
    )


class _Trials(InMemoryStorage):
    """Trials of candidates: those told first, and the one that is decided about.

    Optuna's own storage numbers trials itself and gives all of them; here a decision sees the first few.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self._objective = objective
        self.told: list[FrozenTrial] = []
        self.shown = _trial(-1, {})
        self._known = 0

    def show(self, trial: FrozenTrial, known: int) -> None:
        """Let there be this one and so many of those told."""
        self.shown, self._known = trial, known

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See Optuna."""
        found = [*self.told[: self._known], self.shown]
        found = found if states is None else [trial for trial in found if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """See Optuna; of equals the one told first."""
        complete = [trial for trial in self.told[: self._known] if trial.state == TrialState.COMPLETE]
        if not complete:
            raise ValueError("No trials are completed yet.")
        return max(complete, key=lambda trial: self._objective.gain(trial.values[0]))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See Optuna."""
        found = self.get_all_trials(0, deepcopy=False)
        return next(trial for trial in reversed(found) if trial._trial_id == trial_id)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Note something on the one that is decided about, as a copy: lists that were given out stay what they are."""
        self.shown = copy.copy(self.shown)
        self.shown.system_attrs = {**self.shown.system_attrs, key: value}
