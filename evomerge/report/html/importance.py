"""Which genes decided: their importance by PED-ANOVA over the candidates of the ledger."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evomerge.objectives import Objective
from evomerge.report.formatting import clean, count, number
from evomerge.report.html.data import RunView
from evomerge.report.html.page import Page
from evomerge.report.phase_names import phase_name
from evomerge.report.study import genes_of, study_of

FEWEST = 20
MOST_GENES = 500
MOST_TRIALS = 3000
SHOWN = 12
_OBJECTIVES = 3


@dataclass(frozen=True)
class Bar:
    """A gene, its share of the importance of all, and its value in the winner."""

    name: str
    share: float
    winner: str


@dataclass(frozen=True)
class Ranking:
    """The genes of one objective and phase, or the reason why there is none."""

    title: str
    bars: list[Bar]
    rest: int = 0
    reason: str = ""


def importance(view: RunView, page: Page) -> Markup | None:
    """Bars of genes for every phase and objective."""
    history = view.history
    if not any(trial.status == "ok" for trial in history.trials):
        return None
    objectives = history.objectives[:_OBJECTIVES]
    rankings = [
        _ranking(view, phase, objective, several=len(objectives) > 1)
        for phase in range(max(1, len(history.phases)))
        for objective in objectives
    ]
    reasons = list(dict.fromkeys(r.reason for r in rankings if r.reason))
    shown = [ranking for ranking in rankings if ranking.bars]
    return page.render("importance.html", rankings=shown, reasons=reasons, titled=len(shown) > 1)


def _ranking(view: RunView, phase: int, objective: Objective, several: bool) -> Ranking:
    history = view.history
    name = clean(phase_name(history.phases[phase]), 60) if len(history.phases) > 1 else ""
    title = ", ".join(
        word for word in (f"Phase {name}" if name else "", clean(objective.name) if several else "") if word
    )
    own = [trial for trial in history.trials if trial.phase == phase and trial.status == "ok"]
    own = [t for t in own if math.isfinite(t.objectives.get(objective.name, math.nan))]
    where = f" in phase {name}" if name else ""
    genes = genes_of(own[-1], history) if own else {}
    if own and isinstance(own[-1].genome, dict) and "lineage" in own[-1].genome:
        why = "a lineage is what its ancestors were, not the mix of its last step"
        return Ranking(title, [], reason=f"Gene importance is left out{where}: {why}.")
    if not genes:
        what = "its genomes are raw weights" if own else "no candidate has a score"
        return Ranking(title, [], reason=f"Gene importance is left out{where}: {what}.")
    if len(own) < max(FEWEST, len(genes)):
        need = max(FEWEST, len(genes))
        reason = f"Gene importance is left out{where}: {count(len(own), 'scored candidate')} say too little of "
        return Ranking(title, [], reason=reason + f"{count(len(genes), 'gene')}; it takes {need}.")
    if len(genes) > MOST_GENES:
        return Ranking(title, [], reason=f"Gene importance is left out{where}: {count(len(genes))} genes are too many.")
    try:
        found = _importances(view, phase, objective)
    except (RuntimeError, ValueError) as error:
        return Ranking(title, [], reason=f"Gene importance is left out{where}: {clean(error, 200)}.")
    if not found or not sum(found.values()) > 0:
        return Ranking(title, [], reason=f"Gene importance is left out{where}: no gene makes a difference that shows.")
    winner = genes_of(view.winner, history) if view.winner is not None and view.winner.phase == phase else {}
    total = sum(found.values())
    ranked = sorted(found.items(), key=lambda entry: -entry[1])
    bars = [Bar(clean(gene, 80), value / total, _value(winner.get(gene))) for gene, value in ranked[:SHOWN]]
    return Ranking(title, bars, rest=len(ranked) - len(bars))


def _importances(view: RunView, phase: int, objective: Objective) -> dict[str, float]:
    import optuna

    history = view.history
    own = history.of_phase(phase)
    place = [o.name for o in history.objectives].index(objective.name)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = study_of(own, most=MOST_TRIALS)
            # With a target the evaluator looks for low values, whatever the direction.
            sign = -objective.gain(1.0)

            def target(trial: Any) -> float:
                return float(sign * trial.values[place])

            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.1, region_quantile=1.0)
            return optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, float) else clean(value, 30)
