"""Estimators that know what each item is like: p-IRT and gp-IRT of tinyBenchmarks, mp-IRT and gmp-IRT of MERGE3."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Items
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Estimate
from fitness.estimators.ability import Case, tell_each
from fitness.estimators.anchor_names import Anchors
from fitness.estimators.anchors import AnchorOrder, drawn_order
from fitness.estimators.calibration import Calibration, Replay, batches, calibrate, some_of
from fitness.estimators.chances import Chances
from fitness.estimators.columns import Columns, Row
from fitness.estimators.item_response import Fit, ItemParameters, fit_items, metrics_of
from fitness.estimators.stratified_mean import StratifiedMean
from fitness.estimators.unseen import Shown, Unseen

MOST_MODELS = 256
"""What is fitted to: the first 16 known models and the latest of the others."""

_FIRST = 16
_ENDPOINTS = 8
_MOST_LEVELS = 8
_AT_ONCE = 64  # models that are estimated together: arrays of so many times the items
_Taken = dict[tuple[bool, int, bytes], tuple[ItemParameters, ItemParameters]]
"""By kind and items those that a model was run on, and the others."""

_LATEST = 32  # models, whose mean ability is what is expected of the next: a search moves on


class ItemResponse:
    """What items that were not run would give, from a latent model of items and abilities (`item_response`).

    - p-IRT (Polo et al., tinyBenchmarks, arXiv 2402.14992): ``λ Σ_seen y / n + (1 - λ) mean_unseen P(1 | θ)``, with
      ``λ = n/N`` and the ability ``θ`` that the items seen tell of.
    - gp-IRT (same): ``c mean_seen + (1 - c) p-IRT``. The default ``c`` makes the variance of the sum least, given those
      of its parts: as the items are few, or the latent model does not hold, it moves towards the mean. mergenetic
      fixes 0.5.
    - mp-IRT (Mencattini et al., MERGE3, arXiv 2502.10436): as p-IRT, where the ability is a sum of the sources', with
      weights that the items seen tell of (prior: equal, variance 1).
    - gmp-IRT (same): gp-IRT with mp-IRT in the place of p-IRT.

    Items that were run count as they are, so that the estimate of all items is the objective itself. Standard errors
    have three parts: that of the ability, that of the items' own parameters and the chance of each unseen answer. As
    the latent model is never right, they are scaled by how far off it is on known models, each of which is left out in
    turn and told from some of its own items (`calibration`).

    A search moves on: the ability that is expected is the mean of the latest models', and a candidate may be better or
    worse at a whole metric than its ability says (a random intercept), so that it is not drawn back to what was.

    With fewer than two known models these are the stratified mean.

    Args:
        shares: what the mean of each metric's items counts.
        objectives: to estimate.
        dimensions: of abilities; those that are not needed shrink to nothing.
        blend: c of gp-IRT, ``variances`` to choose it from the variances, ``None`` for p-IRT.
        merged: whether abilities are sums of the sources'.
        endpoints: how many of the first known models are the sources; ``None`` for those that come first with all
            items, 8 at most.
        anchors: which items come first (`anchors`).
        earlier: items of models of earlier runs.
    """

    def __init__(
        self,
        shares: Sequence[MetricShare],
        objectives: Sequence[Objective],
        *,
        dimensions: int = 4,
        blend: float | Literal["variances"] | None = None,
        merged: bool = False,
        endpoints: int | None = None,
        anchors: Anchors = "none",
        earlier: Sequence[Items] = (),
    ) -> None:
        self._mean = StratifiedMean(shares, objectives)
        self._dimensions, self._blend, self._anchors = dimensions, blend, anchors
        self._merged, self._asked_endpoints = merged, endpoints
        self._earlier = earlier
        self._fit: Fit | None = None
        self._order: AnchorOrder | None = None
        self._endpoints: list[int] = []
        self._calibration: dict[str, Calibration] = {}

    @property
    def columns(self) -> Columns:
        """Where the items of each metric stand."""
        return self._mean.columns

    def fit(self, known: Sequence[Items]) -> None:
        """Fit the latent model to known models, and find out how far off it is on them.

        Raises:
            FitnessError: models with other metrics or other numbers of items.
        """
        rows = [self.columns.row(items) for items in (*known, *self._earlier)]
        first = min(len(known), _FIRST)
        latest = [*range(len(known), len(rows)), *range(first, len(known))][-(MOST_MODELS - first) :]
        self._mean.fit(known)
        if len(rows) < 2:
            self._fit = None
            return
        values = np.array([rows[k] for k in (*range(first), *latest)])
        metrics = metrics_of(values, self.columns.stretches)
        chosen = np.array([self._chosen(~np.isnan(row)) for row in values])
        self._chances = Chances(self.columns, np.where(chosen, np.nan, values), metrics)
        self._fit = fit_items(self._chances(values), metrics, self._dimensions)
        self._values = values
        self._endpoints = self._first_complete(values, first) if self._merged else []
        self._calibration = self._calibrate(values, chosen)

    def order(self, counts: Mapping[str, int]) -> Mapping[str, Sequence[int]] | None:
        """By task its places, those of the anchors first; ``None`` for random ones."""
        if self._anchors == "none" or self._fit is None:
            return None
        self._order = AnchorOrder(self.columns, self._fit, self._values, self._anchors)
        return self._order.places(counts)

    def estimate(self, items: Items) -> Mapping[str, Estimate]:
        """By objective what all items would give, and its standard error.

        Raises:
            FitnessError: a task of which no item was run, or items of another shape than the known models'.
        """
        return self.estimate_each([items])[0]

    def estimate_each(self, several: Sequence[Items]) -> list[Mapping[str, Estimate]]:
        """`estimate` of several models; the same to the bit, and much less work for those with as many items."""
        found: list[Mapping[str, Estimate]] = []
        for begin in range(0, len(several), _AT_ONCE):
            found += self._estimated([self.columns.row(items) for items in several[begin : begin + _AT_ONCE]])
        return found

    def _estimated(self, rows: Sequence[Row]) -> list[Mapping[str, Estimate]]:
        found: list[Mapping[str, Estimate]] = [self._mean.of_row(row, self._weights(~np.isnan(row))) for row in rows]
        open_ones = [place for place, row in enumerate(rows) if np.isnan(row).any()]
        if self._fit is None or not open_ones:
            return found
        items = self._fit.items
        given = [
            Shown(self.columns, items, row, self._chances(row), self._endpoints, self._chosen(~np.isnan(row)))
            for row in (rows[place] for place in open_ones)
        ]
        for place, predicted in zip(open_ones, self._predict(given), strict=True):
            mean = found[place]
            found[place] = {
                name: self._blended(mean[name], predicted[name], self._calibration.get(name, Calibration()))
                for name in mean
            }
        return found

    def difference(self, items: Items, other: Items) -> Mapping[str, Estimate]:
        """By objective how much more the first gets, from the items that both have, item by item, each the same.

        What anchors stand for changes as more is learnt, and whoever is compared meanwhile must not depend on that.

        Raises:
            FitnessError: a task of which the two have no item in common.
        """
        return self._mean.difference(items, other)

    def by_item(self, items: Items, at: Items) -> Mapping[str, Items]:
        """By objective what each item adds, every item the same; see `Columns.by_item`."""
        return self.columns.by_item(items, at)

    def _weights(self, seen: NDArray[np.bool_]) -> Row | None:
        """How many items each seen stands for; ``None`` where all are drawn."""
        return None if self._order is None or seen.all() else self._order.weights(seen)

    def _chosen(self, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the items seen are anchors."""
        return np.zeros_like(seen) if self._order is None or seen.all() else self._order.chosen(seen)

    def _first_complete(self, values: NDArray[np.float64], known: int) -> list[int]:
        if self._asked_endpoints is not None:
            return list(range(min(self._asked_endpoints, known)))
        complete = [not np.isnan(row).any() for row in values[: min(known, _ENDPOINTS)]]
        return list(range([*complete, False].index(False)))

    def _predict(self, given: Sequence[Shown]) -> list[dict[str, Estimate]]:
        """p-IRT or mp-IRT of rows, with the errors that the latent model says."""
        assert self._fit is not None
        unseen = [Unseen(each) for each in given]
        taken: _Taken = {}
        for kind, abilities in self._fit.abilities.items():
            cases = [self._case(each, kind, abilities, taken) for each in given]
            told = tell_each([case for _, case in cases], abilities[-_LATEST:, :-1].mean(axis=0))
            for each, (hidden, _), found in zip(unseen, cases, told, strict=True):
                each.take(hidden, found)
        for each, own in zip(unseen, given, strict=True):
            row = np.where(own.chosen, np.nan, own.row)
            for metric, above, variance in self._chances.rest(own.columns, row, own.told_by):
                each.raise_by(metric, above, variance)
        return [each.estimates() for each in unseen]

    def _case(
        self, given: Shown, kind: bool, abilities: NDArray[np.float64], taken: _Taken
    ) -> tuple[NDArray[np.intp], Case]:
        """What a model is told from of one kind, and which columns it is told of; models with the same share them."""
        ends = abilities[list(given.endpoints), :-1] if len(given.endpoints) >= 2 else None
        own = given.items.binary == kind
        told, hidden = (np.flatnonzero(own & each) for each in (given.seen, ~given.seen))
        levels = self._levels(given.columns, own)
        levels = np.where(given.chosen, levels + 1 + levels.max(), levels)  # models may be better at these, or worse
        key = kind, id(given.items), given.seen.tobytes()  # `given` keeps its items alive
        if key not in taken:
            taken[key] = given.items.take(told), given.items.take(hidden)
        own_items, others = taken[key]
        return hidden, Case(own_items, given.told_by[told], others, (levels[told], levels[hidden]), ends)

    def _levels(self, columns: Columns, own: NDArray[np.bool_]) -> NDArray[np.int64]:
        """By column of a kind the number of its metric; one for all where metrics are many."""
        found = np.zeros(len(own), dtype=np.int64)
        of_kind = [stretch for stretch in columns.stretches if own[stretch].any()]
        if len(of_kind) <= _MOST_LEVELS:
            for number, stretch in enumerate(of_kind):
                found[stretch] = number
        return found

    def _calibrate(self, values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> dict[str, Calibration]:
        """How far off the latent model is on known models, each left out in turn with those like it."""
        order = drawn_order(self.columns)
        replays: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in self.columns.terms}
        for some in batches(some_of(values, chosen, self.columns, order, self._endpoints)):
            for true, guessed, plain in self._replayed(values, some):
                for name, each in true.items():
                    told, drawn = guessed[name], plain[name]
                    if told.error > 0 and drawn.error > 0 and math.isfinite(each.value + told.value + drawn.error):
                        off = told.value - each.value, told.error, drawn.value - each.value, drawn.error
                        replays[name].append(off)
        return {name: calibrate(found, bool(self._chances)) for name, found in replays.items()}

    def _replayed(
        self, values: NDArray[np.float64], replays: Sequence[Replay]
    ) -> Iterator[tuple[Mapping[str, Estimate], Mapping[str, Estimate], Mapping[str, Estimate]]]:
        """Of known models told from some of their own items: what is true, what the latent model and the mean say."""
        assert self._fit is not None
        chances = self._chances(values)
        known = self._fit.without_each([(replay.left_out, replay.part) for replay in replays])
        means, given = [self._mean.only(replay.part) for replay in replays], []
        for (model, _, part, shown, chosen), items, mean in zip(replays, known, means, strict=True):
            row, soft = (np.where(shown[part], each[model][part], np.nan) for each in (values, chances))
            endpoints = [k for k in self._endpoints if k != model]
            given.append(Shown(mean.columns, items, row, soft, endpoints, chosen[part]))
        for replay, each, guessed, mean in zip(replays, given, self._predict(given), means, strict=True):
            yield mean.of_row(values[replay.model][replay.part]), guessed, mean.of_row(each.row)

    def _blended(self, mean: Estimate, predicted: Estimate, known: Calibration) -> Estimate:
        told = predicted.error * known.told
        if self._blend is None:
            return Estimate(predicted.value, told)
        drawn = mean.error
        if not math.isfinite(drawn):
            return Estimate(predicted.value, told)
        common = known.common * told * drawn
        if self._blend == "variances":
            rest = told**2 + drawn**2 - 2 * common
            share = min(max((told**2 - common) / rest, 0.0), 1.0) if rest > 0 else 0.5
        else:
            share = self._blend
        variance = (share * drawn) ** 2 + ((1 - share) * told) ** 2 + 2 * share * (1 - share) * common
        return Estimate(share * mean.value + (1 - share) * predicted.value, math.sqrt(variance))
