"""An Optuna study of a run's ledger: for gene importance, dashboards and export."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.report.history import History, read_history
from evomerge.report.phase_names import phase_name
from evomerge.report.trial import Trial
from evomerge.run.folder import RunFolder

STATES = {
    "ok": TrialState.COMPLETE,
    "infeasible": TrialState.FAIL,
    "failed": TrialState.FAIL,
    "pruned": TrialState.PRUNED,
    "": TrialState.RUNNING,
}


def study_of(
    run: Path | str | RunFolder | History, *, storage: Any = None, name: str | None = None, most: int | None = None
) -> optuna.Study:
    """The search of a run as a study: a trial for every candidate, in the order asked.

    Parameters are the genes; of a lineage, mix and split of the last step; of raw weights there are none. Their ranges
    are those of the values that were tried: a ledger keeps no bounds. User attributes name the candidate, its parents,
    its metrics, its seconds and its error.

    Args:
        run: a run folder, or what was read of it.
        storage: of Optuna, where the study is made; in memory for ``None``.
        name: of the study; the run folder's by default.
        most: of more trials than this, as many are taken, evenly spaced, and the best of all.

    Raises:
        LedgerError: the folder is not a run's.
    """
    history = run if isinstance(run, History) else read_history(run)
    directions = [objective.direction for objective in history.objectives] or ["maximize"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=storage, study_name=name or history.folder.path.resolve().name, directions=directions
        )
        if history.objectives:
            study.set_metric_names([objective.name for objective in history.objectives])
    study.set_user_attr("evomerge_run", str(history.folder.path))
    study.set_user_attr("baselines", {name: trial.objectives for name, trial in history.baselines.items()})
    study.set_user_attr("held_out", {name: trial.objectives for name, trial in history.held_out.items()})
    study.add_trials(trials_of(history, most=most))
    return study


def trials_of(history: History, *, most: int | None = None) -> list[FrozenTrial]:
    """The candidates as trials of Optuna, baselines not among them; see `study_of`."""
    chosen = sorted([*history.trials, *history.in_flight.values()], key=lambda trial: trial.candidate)
    if most is not None and len(chosen) > most:
        chosen = _thinned(chosen, most, history.winner)
    params = [genes_of(trial, history) for trial in chosen]
    distributions = _distributions(params)
    return [_trial(trial, own, distributions, history) for trial, own in zip(chosen, params, strict=True)]


def genes_of(trial: Trial, history: History) -> dict[str, Any]:
    """A candidate's genes by name; none of raw weights."""
    genome = trial.genome
    if isinstance(genome, Mapping):
        steps = genome.get("lineage")
        values = steps[-1][0] if isinstance(steps, list) and steps else []
        if len(values) % 2 or (values and isinstance(values[0], str)):  # a seed, which is a name; a perturbed model
            return {}
        words = [f"{what} {number // 2 + 1}" for number in range(0, len(values), 2) for what in ("mix", "split")]
        words = ["mix", "split"] if len(values) == 2 else words
        return dict(zip(words, values, strict=True))
    names = history.genes[trial.phase] if trial.phase < len(history.phases) else []
    if not isinstance(genome, list) or len(genome) != len(names):
        return {}
    return dict(zip(names, genome, strict=True))


def _thinned(trials: Sequence[Trial], most: int, winner: int | None) -> list[Trial]:
    step = len(trials) / most
    places = {int(number * step) for number in range(most)}
    return [trial for place, trial in enumerate(trials) if place in places or trial.candidate == winner]


def _distributions(params: Iterable[Mapping[str, Any]]) -> dict[str, BaseDistribution]:
    """The range of every gene, from the values that it had."""
    values: dict[str, list[Any]] = {}
    for own in params:
        for name, value in own.items():
            values.setdefault(name, []).append(value)
    # A ledger that somebody changed may hold lists for numbers.
    return {
        name: _distribution(tried)
        for name, tried in values.items()
        if all(value is None or isinstance(value, str | bool | int | float) for value in tried)
    }


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    if any(isinstance(value, str | bool) or value is None for value in values):
        return CategoricalDistribution(sorted(set(values), key=str))
    if all(isinstance(value, int) for value in values):
        return IntDistribution(min(values), max(values))
    return FloatDistribution(float(min(values)), float(max(values)))


def _trial(
    trial: Trial, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution], history: History
) -> FrozenTrial:
    state = STATES.get(trial.status, TrialState.FAIL)
    values = [trial.objectives.get(objective.name, math.nan) for objective in history.objectives]
    if state is TrialState.COMPLETE and (not values or any(math.isnan(value) for value in values)):
        state = TrialState.FAIL
    attributes: dict[str, Any] = {
        "candidate": trial.candidate,
        "status": trial.status or "in flight",
        "parents": list(trial.parents),
        "recipe_hash": trial.recipe_hash,
        "metrics": {name: value for name, value in trial.metrics.items() if math.isfinite(value)},
        "seconds": trial.seconds,
    }
    if len(history.phases) > 1:
        attributes["phase"] = phase_name(history.phases[trial.phase])
    if trial.error:
        attributes["error"] = trial.error
    if trial.source is not None:
        attributes["warm"] = trial.source
    own = {name: distributions[name] for name in params if name in distributions}
    made = create_trial(
        state=TrialState.COMPLETE if state is TrialState.COMPLETE else TrialState.FAIL,
        values=values if state is TrialState.COMPLETE else None,
        params={name: _param(value, own[name]) for name, value in params.items() if name in own},
        distributions=own,
        user_attrs=attributes,
    )
    made.state = state
    made.datetime_start = _time(trial.asked_at)
    made.datetime_complete = _time(trial.told_at) if state.is_finished() else None
    return made


def _param(value: Any, distribution: BaseDistribution) -> Any:
    return float(value) if isinstance(distribution, FloatDistribution) else value


def _time(stamp: float) -> datetime:
    """Local time without a zone, as Optuna writes it; the epoch for one that no clock of this machine shows."""
    try:
        return datetime.fromtimestamp(stamp, UTC).astimezone().replace(tzinfo=None)
    except (OverflowError, ValueError, OSError):  # NaN, or the year 1 west of Greenwich
        return datetime.fromtimestamp(0.0, UTC).astimezone().replace(tzinfo=None)
