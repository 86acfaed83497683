"""How well estimators tell the candidates of a run from some of their items: ``estimator_coverage.py RUN``.

The ledger of a run that scored every candidate on all items is replayed in order. Before each group of candidates the
estimator is fitted to what a search would know then: all items of the baselines, and of the candidates so far those
that were run. For each number of items prints, by estimator: the mean absolute error, the rank correlation with the
scores on all items within a group (mean over groups), how many of the 95 % intervals (1.96 standard errors) hold these
scores, and the mean standard error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.stats import spearmanr

from evomerge.candidate import Items
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Estimate
from evomerge.run.items import read_items
from evomerge.run.ledger import read_ledger
from evomerge.search.racing.parts import in_turn
from fitness.estimators.settings import EstimatorSettings, parse_estimator

ESTIMATORS = (
    "mean",
    "p_irt",
    "gp_irt",
    "{name: gp_irt, blend: 0.5}",
    "mp_irt",
    "gmp_irt",
    "{name: gp_irt, anchors: clusters}",
    "{name: gp_irt, anchors: entropy}",
    "{name: gp_irt, anchors: information}",
)


@dataclass(frozen=True)
class Recorded:
    """What a run scored, in order.

    Attributes:
        shares: what the mean of each metric's items counts.
        objectives: of the run.
        baselines: their items.
        candidates: likewise.
        scores: of the candidates, by objective, on all items.
    """

    shares: list[MetricShare]
    objectives: list[Objective]
    baselines: list[Items]
    candidates: list[Items]
    scores: list[Mapping[str, float]]


@dataclass(frozen=True)
class Outcome:
    """How an estimator did with one number of items.

    Attributes:
        error: mean absolute.
        rank: Spearman's correlation within groups, mean over groups.
        coverage: of the 95 % intervals.
        told: mean standard error.
    """

    error: float
    rank: float
    coverage: float
    told: float


def read(run: Path, most: int) -> Recorded:
    """Read the first `most` candidates of a run whose metrics are means of items, or logarithms of perplexities."""
    events = list(read_ledger(run))
    started = next(event for event in events if event["event"] == "started")
    names = {event["candidate"]: event.get("name") for event in events if event["event"] == "asked"}
    found = Recorded(
        [_of_items(share) for entry in started["shares"]["search"] if (share := MetricShare.from_json(entry))],
        [Objective(name, direction) for name, direction in started["objectives"].items()],
        [],
        [],
        [],
    )
    for event in events:
        if event["event"] != "told" or event["split"] != "search" or event["status"] != "ok":
            continue
        items = read_items(run, event["candidate"])
        if names.get(event["candidate"]):
            found.baselines.append(items)
        elif len(found.candidates) < most:
            found.candidates.append(items)
            found.scores.append(event["objectives"])
    return found


def _of_items(share: MetricShare) -> MetricShare:
    """Items of a perplexity are negative log-likelihoods, whose mean is its logarithm."""
    metric = share.metric.rpartition("/")[2].split(",")[0]
    transform = "" if metric == "perplexity" else share.transform
    return MetricShare(share.metric, share.weight, share.direction, share.objective, transform)


def hide(items: Items, part: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.float64]]:
    """The items of a part, NaN in the place of the others."""
    hidden = {}
    for metric, values in items.items():
        hidden[metric] = np.full(len(values), np.nan)
        places = list(part[metric.rpartition("/")[0]])
        hidden[metric][places] = values[places]
    return hidden


def replay(recorded: Recorded, settings: EstimatorSettings, items: int, group: int, fixed: bool, seed: int) -> Outcome:
    """Tell every candidate of a run from `items` items.

    Args:
        recorded: the run.
        settings: the estimator.
        items: of all tasks together.
        group: how many candidates are told from the same items, after one fit.
        fixed: whether all groups are told from the same items; those of anchors that are chosen are the same anyway.
        seed: draws the items.
    """
    counts = {m.rpartition("/")[0]: len(values) for m, values in recorded.baselines[0].items()}
    estimator = settings.build(recorded.shares, recorded.objectives, counts)
    share = items / sum(counts.values())
    rng = np.random.default_rng(seed)
    estimator.fit(recorded.baselines)
    preferred = estimator.order(counts)
    known, ranks, off = list(recorded.baselines), [], []
    name = recorded.objectives[0].name
    part: Mapping[str, Sequence[int]] = {}
    for begin in range(0, len(recorded.candidates), group):
        if begin:
            estimator.fit(known)
        if not (fixed and part):
            order = {task: rng.permutation(count).tolist() for task, count in counts.items()}
            if preferred is not None:
                order = {task: in_turn(drawn, preferred[task]) for task, drawn in order.items()}
            part = {task: places[: max(1, round(share * counts[task]))] for task, places in order.items()}
        told: list[Estimate] = []
        for candidate in recorded.candidates[begin : begin + group]:
            shown = hide(candidate, part)
            told.append(estimator.estimate(shown)[name])
            known.append(shown)
        true = [scores[name] for scores in recorded.scores[begin : begin + group]]
        off += [(each.value - score, each.error) for each, score in zip(told, true, strict=True)]
        if len(set(true)) > 1:
            rank = float(spearmanr([each.value for each in told], true).statistic)
            ranks += [] if math.isnan(rank) else [rank]
    errors = np.array(off)
    return Outcome(
        float(np.abs(errors[:, 0]).mean()),
        float(np.mean(ranks)) if ranks else math.nan,
        float((np.abs(errors[:, 0]) <= 1.96 * errors[:, 1]).mean()),
        float(errors[:, 1].mean()),
    )


def main() -> None:
    """Print a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder whose candidates have all items")
    parser.add_argument("--items", type=int, nargs="+", default=[30, 75, 150, 300], help="of all tasks together")
    parser.add_argument("--estimators", nargs="+", default=list(ESTIMATORS), help="as fitness.estimator has them")
    parser.add_argument("--group", type=int, default=20, help="candidates told from the same items, after one fit")
    parser.add_argument("--most", type=int, default=1000, help="candidates")
    parser.add_argument("--fixed", action="store_true", help="the same items for all groups")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the items, of which the mean is shown")
    given = parser.parse_args()
    recorded = read(given.run, given.most)
    print(f"{len(recorded.candidates)} candidates, {len(recorded.baselines)} baselines\n")
    print("| items | estimator | mean absolute error | rank correlation | 95 % intervals that hold | standard error |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for items in given.items:
        for text in given.estimators:
            settings = parse_estimator(yaml.safe_load(text))
            found = [replay(recorded, settings, items, given.group, given.fixed, seed) for seed in range(given.seeds)]
            numbers = np.mean([[o.error, o.rank, o.coverage, o.told] for o in found], axis=0)
            said = text.strip("{}").replace("name: ", "")
            print(f"| {items} | `{said}` | {numbers[0]:.4f} | {numbers[1]:.2f} | {numbers[2]:.1%} | {numbers[3]:.4f} |")


if __name__ == "__main__":
    main()
