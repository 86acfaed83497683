"""M2N2's population at the end: which member holds which items, rebuilt from the ledger and the per-item scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from evomerge.errors import EvomergeError
from evomerge.report.formatting import clean, count, listed, number
from evomerge.report.html.data import RunView
from evomerge.report.html.headline import node_of
from evomerge.report.html.page import Page
from evomerge.report.html.plots import RAISED, Plot, axis, figure, label
from evomerge.report.outcome import task_name
from evomerge.report.trial import Trial
from evomerge.strategies.archives.item_scores import ItemScores

Array = NDArray[np.float64]
_COMPETITION = ("alpha", "epsilon", "capacity", "attraction", "shift")
_MOST_READ = 20_000
_MOST_MEMBERS = 40
_MOST_ITEMS = 1500
CLUSTERS = 10


@dataclass(frozen=True)
class Niches:
    """The population as it was left.

    Attributes:
        members: the fittest first.
        scores: a row for each, a column for each item.
        fitness: under competition.
        tasks: of the items.
        clusters: the items' numbers, cluster by cluster.
    """

    members: list[Trial]
    scores: Array
    fitness: Array
    tasks: list[str]
    clusters: list[NDArray[np.int64]]


@dataclass(frozen=True)
class MemberRow:
    """One member in the table."""

    name: str
    score: str
    fitness: str
    alone: str
    holds: str
    winner: bool


def niches(view: RunView, page: Page) -> Markup | None:
    """A heat map of members and clusters of items, and what each member holds."""
    phase = _phase(view)
    if phase is None:
        return None
    found = rebuild(view, phase)
    if isinstance(found, str):
        return page.render("missing.html", reason=found)
    held = _held(found)
    best = found.scores.max(axis=0)
    alone = ((found.scores >= best) & (best > 0) & ((found.scores >= best).sum(axis=0) == 1)).sum(axis=1)
    objective = view.objective
    rows = [
        MemberRow(
            name=f"{trial.candidate}",
            score=number(trial.objectives.get(objective.name)),
            fitness=number(float(found.fitness[place])),
            alone=count(int(alone[place])),
            holds=listed(held[place], 6) or "–",
            winner=trial.candidate == view.history.winner,
        )
        for place, trial in enumerate(found.members)
    ]
    return page.render(
        "niches.html",
        rows=rows,
        picture=_picture(found),
        items=found.scores.shape[1],
        clusters=len(found.clusters),
        objective=clean(objective.name),
        legend=_legend(found),
    )


def rebuild(view: RunView, phase: int) -> Niches | str:
    """The population of a phase that M2N2 searched, or why it cannot be told."""
    from evomerge.strategies.archives.population import Population  # compiled: other runs' reports need not wait for it

    history = view.history
    own = [trial for trial in history.trials if trial.phase == phase and trial.status == "ok"]
    if len(own) > _MOST_READ:
        return f"{count(len(own))} evaluations are too many to read the items of"
    node = node_of(view.config, history.phases[phase] if history.phases else {}, "strategy")
    size = node.get("size", 20)
    reader = ItemScores(history.objectives, _patterns(node.get("items")), _patterns(node.get("lower_is_better")))
    population: Population | None = None
    members: list[Trial] = []
    names: list[str] = []
    for trial in own:
        evaluation = view.evaluation(trial, "search")
        if trial.digest is not None and not evaluation.items:
            continue
        try:
            scores = reader.vector(evaluation)
            if scores is None:
                continue
            if population is None:
                options: dict[str, Any] = {name: node[name] for name in _COMPETITION if name in node}
                population = Population(size, len(scores), **options)
                names = _tasks(reader, len(scores))
            row = population.add(scores)
        except (EvomergeError, TypeError, ValueError) as error:
            return clean(error, 300)
        if row == len(members):
            members.append(trial)
        elif row is not None:
            members[row] = trial
    if population is None or len(members) < 2:
        return "its population has less than two members"
    fitness = np.array(population.fitness())
    order = np.argsort(-fitness, kind="stable")[:_MOST_MEMBERS]
    scores = np.array(population.scores)[order]
    return Niches([members[i] for i in order], scores, fitness[order], names, clusters_of(scores))


def clusters_of(scores: Array, most: int = CLUSTERS) -> list[NDArray[np.int64]]:
    """Items that the same members answer well, cluster by cluster (Ward), the easiest first."""
    from scipy.cluster.hierarchy import fcluster, linkage

    low, high = scores.min(axis=0), scores.max(axis=0)
    scaled = np.where(high > low, (scores - low) / np.where(high > low, high - low, 1.0), 0.5).T
    # Items that all members answer alike tell nothing of niches: they are told apart by their level.
    level = (scores.mean(axis=0) - scores.mean()) / (scores.std() or 1.0)
    points = np.column_stack([scaled, np.clip(level, -2, 2)[:, None]])
    items = points.shape[0]
    chosen = np.unique(np.linspace(0, items - 1, min(items, _MOST_ITEMS)).round().astype(np.int64))
    if len(chosen) < 2:
        return [np.arange(items)]
    labels = fcluster(linkage(points[chosen], "ward"), most, "maxclust")
    centres = np.stack([points[chosen][labels == k].mean(axis=0) for k in np.unique(labels)])
    nearest = ((points[:, None, :] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
    found = [np.flatnonzero(nearest == k) for k in range(len(centres))]
    return sorted((c for c in found if len(c)), key=lambda c: -float(scores[:, c].mean()))


def _phase(view: RunView) -> int | None:
    """The last phase that M2N2 searched."""
    phases = view.history.phases or [{}]
    for place in range(len(phases) - 1, -1, -1):
        if str(node_of(view.config, phases[place], "strategy").get("_target_", "")).endswith(".m2n2.M2N2"):
            return place
    return None


def _patterns(value: Any) -> Sequence[str] | None:
    return [str(entry) for entry in value] if isinstance(value, list) else None


def _tasks(reader: ItemScores, items: int) -> list[str]:
    layout = reader.state_dict()["layout"]
    names = [task_name(name) for name, many in layout or [] for _ in range(many)]
    return names if len(names) == items else [""] * items


def _held(found: Niches) -> list[list[str]]:
    """The clusters, by letter, that each member answers best."""
    held: list[list[str]] = [[] for _ in found.members]
    for letter, cluster in zip(_letters(found), found.clusters, strict=True):
        means = found.scores[:, cluster].mean(axis=1)
        for place in np.flatnonzero(means >= means.max() - 1e-12)[:3]:
            if means.max() > means.min():
                held[int(place)].append(letter)
    return held


def _letters(found: Niches) -> list[str]:
    return [chr(ord("A") + place) for place in range(len(found.clusters))]


def _legend(found: Niches) -> list[dict[str, str]]:
    """What is in every cluster."""
    lines = []
    for letter, cluster in zip(_letters(found), found.clusters, strict=True):
        tasks, counts = np.unique([found.tasks[i] for i in cluster], return_counts=True)
        order = np.argsort(-counts)[:3]
        of = [f"{count(int(counts[i]))} of {clean(tasks[i], 50)}" for i in order if tasks[i]]
        lines.append({"letter": letter, "items": count(len(cluster), "item"), "tasks": listed(of)})
    return lines


def _picture(found: Niches) -> Plot:
    letters = _letters(found)
    means = np.stack([found.scores[:, cluster].mean(axis=1) for cluster in found.clusters], axis=1)
    wide = [f"{letter}<br>{len(cluster)}" for letter, cluster in zip(letters, found.clusters, strict=True)]
    trace = {
        "type": "heatmap",
        "x": list(range(len(letters))),
        "y": [f"#{trial.candidate}" for trial in found.members],
        "z": [[float(f"{v:.4g}") for v in row] for row in means],
        "customdata": [[label(letter) for letter in letters] for _ in found.members],
        "colorscale": RAISED,
        "colorbar": {"thickness": 8, "outlinewidth": 0, "tickfont": {"size": 10}, "xpad": 6, "nticks": 5},
        "xgap": 1.5,
        "ygap": 1.5,
        "hovertemplate": "candidate %{y}, cluster %{customdata}<br>mean score %{z:.3f}<extra></extra>",
    }
    layout = {
        "xaxis": axis("cluster and its number of items", tickvals=list(range(len(letters))), ticktext=wide, tickangle=0)
        | {"showgrid": False},
        "yaxis": axis(autorange="reversed", showgrid=False, type="category"),
        "margin": {"b": 64, "r": 8},
    }
    about = f"Mean scores of {len(found.members)} members on {len(letters)} clusters of items"
    return Plot({"niches": figure(trace, **layout)}, 90 + 20 * len(found.members), about)
