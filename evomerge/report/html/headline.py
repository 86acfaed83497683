"""The head of a report: what was searched, what won, by how much, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evomerge.report.formatting import clean, count, duration, listed, number, percent, signed
from evomerge.report.html.data import RunView
from evomerge.report.html.page import Page
from evomerge.report.outcome import metric_name
from evomerge.report.phase_names import together
from evomerge.report.statistics import Comparison
from evomerge.report.summary import Row, Summary

STRATEGIES = {
    "AmortizedPareto": "MAP",
    "BruteForce": "brute force",
    "CatCma": "CatCMA",
    "CmaEs": "CMA-ES",
    "CmaMe": "CMA-ME",
    "DifferentialEvolution": "differential evolution",
    "Eggroll": "EGGROLL",
    "GeneticAlgorithm": "a genetic algorithm",
    "GenomeEvolution": "GENOME",
    "Gp": "Gaussian processes",
    "Islands": "islands",
    "M2N2": "M2N2",
    "MapElites": "MAP-Elites",
    "Moead": "MOEA/D",
    "NestedPareto": "nested MAP",
    "Nsga2": "NSGA-II",
    "Nsga3": "NSGA-III",
    "ParticleSwarm": "a particle swarm",
    "QuasiRandom": "a quasi-random sequence",
    "RandomSearch": "random search",
    "Smac": "SMAC",
    "Tpe": "TPE",
}
SPACES = {
    "DataFlowSpace": "paths through the layers of",
    "JointSpace": "paths and weights together of",
    "LineageSpace": "merges of merges of",
    "MethodChoice": "merge methods and their parameters for",
    "ParameterSpace": "merge parameters for",
    "PerturbationSpace": "perturbations of",
    "PermutationSpace": "orders of the layers of",
    "WeightsSpace": "the raw weights of",
}


@dataclass(frozen=True)
class Fact:
    """A number of the head, what it is, and a small line under it."""

    name: str
    value: str
    more: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Notice:
    """A line that a reader must not miss: ``warn``, ``bad`` or plain."""

    text: str
    kind: str = ""


def headline(view: RunView, page: Page) -> Markup:
    """The head of one run's report."""
    summary = view.summary
    title, lead = _verdict(view, summary)
    facts = [fact for fact in (*_outcome(view, summary), *_effort(view)) if fact is not None]
    return page.render(
        "headline.html",
        kicker=searched(view),
        title=title,
        lead=lead,
        facts=facts,
        notices=notices(view, summary),
    )


def searched(view: RunView) -> str:
    """``name · CMA-ES over merge parameters for math and lang (16 genes)``."""
    parts = [view.name]
    names = [clean(name, 40) for name in view.pool.sources] if view.pool is not None else []
    steps = []
    for number_, group in enumerate(together(view.history.phases or [{}])):
        phase = group[0]
        strategy = named(node_of(view.config, phase, "strategy"), STRATEGIES)
        space = named(node_of(view.config, phase, "search_space"), SPACES)
        genes = phase.get("genes")
        many = len(genes) if isinstance(genes, list) else genes if isinstance(genes, int) else 0
        text = f"{strategy} over {space} {listed(names) or 'a model'}" if strategy and space else strategy or space
        if many and not (isinstance(genes, list) and genes in (["lineage"], ["weights"])):
            text += f" ({count(many, 'gene')})"
        text += f" for each of {len(group)} preferences" if len(group) > 1 else ""
        steps.append(text if number_ == 0 else f"then {text}")
    return " · ".join([*parts, ", ".join(step for step in steps if step)]).rstrip(" ·")


def node_of(config: Mapping[str, Any], phase: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """The configuration of a phase's search space or strategy."""
    phases = config.get("phases")
    own = phases.get(phase.get("phase")) if isinstance(phases, Mapping) else None
    node = own.get(part) if isinstance(own, Mapping) else None
    node = config.get(part) if node is None else node
    return node if isinstance(node, Mapping) else {}


def named(node: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What people call a part of the configuration: a known name, or its class."""
    kind = str(node.get("_target_", "")).rpartition(".")[2]
    return names.get(kind, clean(kind, 40))


def what(summary: Summary) -> str:
    """What is compared: ``accuracy``, ``the mean of 3 tasks``."""
    if len(summary.tasks) == 1:
        return f"{clean(summary.tasks[0].task)} ({clean(metric_name(summary.tasks[0].metric))})"
    unequal = len({round(task.weight, 9) for task in summary.tasks}) > 1
    return f"the {'weighted ' if unequal else ''}mean of {len(summary.tasks)} tasks"


def p_words(p_value: float) -> str:
    """``p = 0.03``, ``p < 0.0001``."""
    if p_value < 1e-4:
        return "p\u00a0<\u00a00.0001"
    return f"p\u00a0=\u00a0{p_value:.2g}" if p_value < 0.995 else "p\u00a0=\u00a01"


def p_cell(p_value: float) -> str:
    """The same in a column that is headed p."""
    return p_words(p_value).removeprefix("p\u00a0").removeprefix("=\u00a0")


def _verdict(view: RunView, summary: Summary | None) -> tuple[str, str]:
    row = summary.evolved if summary is not None else None
    if summary is None or row is None or row.mean is None or row.gain is None:
        return _without(view)
    rival = clean(summary.best_baseline, 60)
    best = next(r for r in summary.rows if r.name == summary.best_baseline and r.kind != "evolved")
    split = "held-out" if summary.split == "held_out" else "search"
    scores = f"It scores {number(row.mean)} on {what(summary)}; {rival}, the best baseline, scores {number(best.mean)}."
    test = row.comparison
    if test is None:
        return f"The evolved merge differs from {rival} by {signed(row.gain)}", f"{scores} Nothing can be tested."
    sure = f"{scores} {_evidence(test, split, row)}"
    if not test.significant:
        return "The evolved merge is not significantly different from the best baseline", sure
    if row.gain > 0 and test.difference > 0:
        where = "" if summary.split == "held_out" else ", on the items of the search"
        return f"The evolved merge beats every baseline by {number(row.gain)} or more{where}", sure
    if row.gain < 0 and test.difference < 0:
        return f"The evolved merge is worse than {rival} by {number(-row.gain)}", sure
    return f"The evolved merge and {rival} differ, but their items say otherwise", sure


def _evidence(test: Comparison, split: str, row: Row) -> str:
    word = "The difference is significant" if test.significant else "The difference could be chance"
    span = ""
    if row.interval is not None:
        span = f", 95% interval {signed(row.interval[0])} to {signed(row.interval[1])}"
    return f"{word}: {p_words(test.p_value)} by the paired {test.test} test on {count(test.items)} {split} items{span}."


def _without(view: RunView) -> tuple[str, str]:
    """The head where there is nothing to compare with."""
    history = view.history
    if view.winner is None:
        told = len(history.trials)
        return (
            "No candidate could be scored" if told else "No candidate has been evaluated yet",
            f"{count(told, 'candidate')} told, none of them with a score." if told else "",
        )
    value = number(view.winner.objectives.get(view.objective.name))
    best = [number(trial.objectives.get(view.objective.name)) for trial in history.baselines.values()]
    beside = "" if best else " The run has no baselines to compare it with."
    return (
        f"The best candidate scores {value}",
        f"That is its {clean(view.objective.name)} on the items that the search chose it by.{beside}",
    )


def _outcome(view: RunView, summary: Summary | None) -> list[Fact | None]:
    row = summary.evolved if summary is not None else None
    if summary is None or row is None or row.gain is None:
        return []
    test = row.comparison
    won = row.gain > 0 and test is not None and test.significant
    gain = Fact("Gain", signed(row.gain), f"on {clean(summary.best_baseline, 40)}", "good" if won else "")
    if test is None:
        return [gain]
    split = "Held-out items" if summary.split == "held_out" else "Search items"
    wins = Fact(split, count(test.items), f"{count(test.wins)} won, {count(test.losses)} lost")
    front = None
    if summary.front is not None:
        size, volume = summary.front
        front = Fact("Pareto front", count(size, "recipe"), f"hypervolume {number(volume)}" if volume else "")
    return [gain, wins, front]


def _effort(view: RunView) -> list[Fact | None]:
    history = view.history
    own = [trial for trial in history.trials if trial.source is None]
    budget = f"of {count(history.evaluations)}" if history.evaluations and len(own) != history.evaluations else ""
    failed = sum(trial.status != "ok" for trial in own)
    return [
        Fact("Candidates", count(len(own)), budget or (f"{count(failed)} without a score" if failed else "all scored")),
        Fact("Search time", duration(history.seconds), _pace(len(own), history.seconds)) if own else None,
        Fact("Held-out scoring", duration(history.held_out_seconds), count(len(history.held_out), "model"))
        if history.held_out_seconds
        else None,
    ]


def _pace(told: int, seconds: float) -> str:
    hour = 3600 * told / seconds if seconds > 0 else 0
    return f"{hour:,.0f} candidates an hour" if hour >= 10 else f"{24 * hour:,.0f} candidates a day"


def notices(view: RunView, summary: Summary | None) -> list[Notice]:
    """What a reader must know before the numbers: how the run ended, what failed, what cannot be read."""
    found = [notice for notice in (_ending(view),) if notice is not None]
    history = view.history
    failed = Counter(trial.status for trial in history.trials if trial.status != "ok")
    total = sum(failed.values())
    if total and total >= 0.1 * len(history.trials):
        kinds = listed([f"{count(n)} {clean(status, 20)}" for status, n in failed.most_common()])
        share = percent(total / len(history.trials))
        found.append(Notice(f"{share} of the candidates have no score: {kinds}. The reasons are under Cost.", "warn"))
    if summary is not None and summary.split == "search":
        found.append(
            Notice(
                "There are no held-out scores. These are the items that the search chose the winner by, "
                "which flatters it.",
                "warn",
            )
        )
    overlap = history.started.get("overlap")
    if isinstance(overlap, float) and 0 < overlap <= 1:
        text = f"{percent(overlap)} of the held-out items are items of the search too, by which the winner was chosen."
        found.append(Notice(text, "warn"))
    found += [Notice(clean(problem, 600), "bad") for problem in view.problems[:8]]
    return found


def _ending(view: RunView) -> Notice | None:
    history = view.history
    done = (
        f"{count(len(history.trials))}{f' of {count(history.evaluations)}' if history.evaluations else ''} candidates"
    )
    if view.state == "running":
        return Notice(f"The run is going on: {done} so far. This page is a snapshot.")
    if view.state == "interrupted":
        return Notice(
            f"The run was interrupted ({clean(history.interrupted, 40)}) after {done}. It can be resumed.", "warn"
        )
    if view.state == "dead":
        return Notice(f"The run did not end: its process is gone after {done}. It can be resumed.", "warn")
    if view.state == "unknown":
        return Notice(f"The run has not ended: {done} so far.", "warn")
    if history.stop_rule is not None:
        return Notice(f"The search ended by {clean(history.stopped or '', 300)}.")
    if history.stopped not in (None, "budget"):
        return Notice(f"The search ended early: {clean(history.stopped, 300)}.", "warn")
    return None
