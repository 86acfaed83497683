"""The engine: computes the tensors of a slice in float32 and rounds them once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from evomerge.errors import EvomergeError
from evomerge.merge.execution.adapter_pairs import adapter_pairs, known_pairs
from evomerge.merge.execution.copies_ahead import CopiesAhead
from evomerge.merge.execution.finite_checks import FiniteChecks
from evomerge.merge.execution.noted_statistics import NotedStatistics
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.scope_values import ScopeValues
from evomerge.merge.execution.scopes import Members, ScopeRanks
from evomerge.merge.execution.score_scopes import ScoreBins, Scored, score_bins
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.merge.execution.stage_slices import StageSlices
from evomerge.merge.execution.tensor_merge import TensorMerge
from evomerge.merge.kernels.sums import CHUNK
from evomerge.merge.methods import METHODS
from evomerge.merge.mixes.cpu_mix import MixCall
from evomerge.merge.mixes.cpu_statistics import Window
from evomerge.merge.mixes.masks import mask_key
from evomerge.merge.planning.slice_plan import Part, SlicePlan, Source
from evomerge.models.checkpoints.headers import FLOAT_DTYPES
from evomerge.models.pool import Pool
from evomerge.models.statistics import Statistic
from evomerge.recipes.slices import SliceId

TORCH_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES.values()}
"""Torch dtypes by the names that recipes use."""

Made = Callable[[SlicePlan], Mapping[str, torch.Tensor]]
"""Gives the tensors of an intermediate's slice."""


@torch.no_grad()
def merge_slice(
    plan: SlicePlan,
    pool: Pool,
    device: str | torch.device = "cpu",
    sources: Sources | None = None,
    out: Mapping[str, torch.Tensor] | None = None,
    made: Made | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of one output slice, by output name.

    Tensors of another than the merged dtypes (integer buffers) are copied from the model that gives the
    configuration.

    Args:
        plan: the slice's plan.
        pool: the source models.
        device: where to merge, when `sources` is not given.
        sources: the pool's tensors on a device, kept between calls.
        out: tensors to write into, by output name; new ones of the plan's dtype otherwise.
        made: gives the tensors of intermediates' slices; they are merged here otherwise.

    Raises:
        EvomergeError: a tensor cannot be read or merged; it is named.
    """
    checks = FiniteChecks()
    merged = SliceMerge(plan, pool, sources or Sources(pool, device, Placement(0, 0, 0)), made, checks=checks).run(out)
    checks.settle()
    return merged


class SliceMerge:
    """Merges one slice.

    Args:
        plan, pool, sources, made: as for `merge_slice`.
        window_bytes: how much of mapped sources may take memory at a time; all for ``None``.
        checks: collects what is not known yet of results on accelerators; asked at once for ``None``.
        copies: gives the models' tensors where they are copied ahead; `sources` does for ``None``.
    """

    def __init__(
        self,
        plan: SlicePlan,
        pool: Pool,
        sources: Sources,
        made: Made | None = None,
        window_bytes: int | None = None,
        checks: FiniteChecks | None = None,
        copies: CopiesAhead | None = None,
    ) -> None:
        self.plan, self.pool, self.sources = plan, pool, sources
        self.dtype = TORCH_DTYPES[plan.dtype]
        self._made = made or StageSlices(plan, lambda inner, own: merge_slice(inner, pool, sources=sources, made=own))
        self._stages: dict[str, tuple[torch.Tensor, ...]] = {}
        self._window_bytes, self._checks, self._copies = window_bytes, checks, copies

    def run(self, out: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """All tensors."""
        results = {}
        for part in self.plan.parts:
            for index in part.tensors:
                name = self.plan.tensors[index]
                results[name] = self.tensor(part, index, out[name] if out is not None else None)
        return {name: results[name] for name in self.plan.tensors}

    def tensor(self, part: Part, index: int, given: torch.Tensor | None) -> torch.Tensor:
        """One tensor, written into `given` where there is one."""
        copy = self.copied(index)
        if copy is not None:
            return given.copy_(copy) if given is not None else copy.to(self.sources.device, copy=True)
        # A tensor that the module keeps in another dtype holds what a file in the plan's dtype would give it.
        direct = given is not None and given.dtype == self.dtype and given.is_contiguous()
        shape = self.pool.layout.shapes[self.plan.like[index]]
        target = given if direct else torch.empty(shape, dtype=self.dtype, device=self.sources.device)
        assert target is not None
        with self.naming(index):
            job = self.merge(part, index)
            finite = job.into(target.view(-1))
            if self._checks is not None and isinstance(finite, torch.Tensor):
                # The error and not what makes it: that holds the sources that were copied for this tensor.
                error = self._named(index, job.not_finite(self.dtype, look=False))
                self._checks.add(finite, lambda: error)
            elif not finite:
                raise job.not_finite(self.dtype)
        return target if given is None or direct else given.copy_(target)

    def prepared(self, part: Part, index: int, given: torch.Tensor) -> tuple[TensorMerge, MixCall] | None:
        """One tensor's merge into `given`, ready for any thread; ``None`` where that is not to be had."""
        merged = self.pool.is_merged(self.plan.like[index])
        if not merged or given.dtype != self.dtype or not given.is_contiguous():
            return None
        with self.naming(index):
            job = self.merge(part, index)
            call = job.call(given.view(-1))
        return (job, call) if call is not None else None

    def copied(self, index: int) -> torch.Tensor | None:
        """The tensor itself where it is no float that is merged, ``None`` otherwise."""
        reference = self.plan.like[index]
        return None if self.pool.is_merged(reference) else self.pool.read(self.pool.info.config_from, reference)

    def merge(self, part: Part, index: int) -> TensorMerge:
        """What merges one tensor by the part's method."""
        method = METHODS[part.method or "passthrough"]  # which also finds what is not finite
        if self._copies is not None:
            self._copies.enter(self.plan, index)
        statistics = self.statistics(part, index)
        values = dict(part.values) if part.method is not None else {"scale": (1.0,)}
        factor = self.plan.factor_of.get(index)
        inputs, base = statistics.tensors
        of_inputs = statistics.keys, statistics.shape, statistics, factor, self.data(part, index)
        return TensorMerge(method, inputs, base, values, *of_inputs)

    def data(self, part: Part, index: int) -> list[Statistic | None]:
        """The statistics of data that the part's method reads of one tensor's sources."""
        if not part.statistics:
            return []
        wanted = itertools.product(METHODS[part.method or "passthrough"].spec.kinds, part.sources)
        return [
            self.sources.statistic(own.model, own.tensors[index], kind, key)
            for (kind, own), key in zip(wanted, part.statistics, strict=True)
        ]

    def statistics(self, part: Part, index: int) -> NotedStatistics:
        """The sources of one tensor, and what is known of them."""
        keys: tuple[int, ...] = ()
        if METHODS[part.method or "passthrough"].random:
            keys = tuple(mask_key(part.seed, source.identity, source.tensors[index]) for source in part.sources)
        base = self.flat(part.base, index) if part.base else None
        inputs = self._inputs(part, index, base)
        every = (*part.sources, *([part.base] if part.base else []))
        # Intermediates come and go with their candidates; notes are kept of models.
        lasting = not any(source.made for source in every)
        names = [(source.model, source.tensors[index]) for source in every]
        notes = self.sources.notes if lasting else Notes(0)
        shape = tuple(self.pool.layout.shapes[self.plan.like[index]])
        window = self.window([*inputs, *([base] if base is not None else [])])
        return NotedStatistics(
            *(inputs, base, shape, keys, names, notes, window),
            pairs=lambda: adapter_pairs(self.pool, part, index),
            scopes=lambda *of: self._scope(part, *of),
            scores=lambda *of: self._scores(part, *of),
            values=lambda *of: self._values(part, *of),
        )

    def _inputs(self, part: Part, index: int, base: torch.Tensor | None) -> list[torch.Tensor]:
        """The sources of one tensor; the base in the place of adapters that a method takes by their factors.

        Folding them would cost more than what such a method makes of them.
        """
        derived, shape = METHODS[part.method or "passthrough"].derived, self.pool.layout.shapes[self.plan.like[index]]
        if derived is None or derived.join is None or base is None or len(shape) != 2:
            return [self.flat(source, index) for source in part.sources]
        known = known_pairs(self.pool, part, index)
        return [base if pair else self.flat(own, index) for pair, own in zip(known, part.sources, strict=True)]

    def _scope(self, part: Part, number: int, scope: str) -> ScopeRanks:
        """The ranks in the layer or the model that an input of a part is of."""
        key, members = self._members(part, [number], scope)
        (model,), base = key[:2]
        return ScopeRanks(key, members, self.sources.notes, lambda name: self._member(model, base, name))

    def _values(self, part: Part, numbers: Sequence[int], scope: str) -> ScopeValues:
        """What is computed of inputs of a part together, in their layer or their model."""
        key, members = self._members(part, numbers, scope)

        def opened(name: str) -> tuple[list[torch.Tensor], torch.Tensor]:
            if self._window_bytes is not None:
                self.pool.unmap()
            return [self.sources.flat(model, name) for model in key[0]], self.sources.flat(key[1], name)

        return ScopeValues(key, members, self.sources.notes, opened)

    def _members(
        self, part: Part, numbers: Sequence[int], scope: str
    ) -> tuple[tuple[tuple[str, ...], str, str, Hashable], Members]:
        """The tensors of the layer or the model that inputs of a part are of, and what notes call it."""
        models, base = tuple(part.sources[number].model for number in numbers), part.base
        assert base is not None, "methods that need a base declare it"
        layer = part.sources[numbers[0]].layer  # that of all of them: `read_beside.check_scope`
        slice_ = SliceId(self.plan.slice.component, layer)
        place = None if scope == "model" else (slice_ if layer is None else layer)
        key = models, base.model, scope, place
        members = self.sources.notes.small(
            ("members", key), lambda: Members.of(self.pool, [*models, base.model], scope, slice_), lasting=True
        )
        return key, members

    def _scores(self, part: Part, number: int, scope: str, rank_one: bool) -> ScoreBins:
        """The scores of what an input of a part changes, in its layer or its model."""
        key, members = self._members(part, [number], scope)
        kind, statistics = METHODS[part.method or "passthrough"].spec.kinds[0], part.statistics[number]
        note = "scores", key, statistics, rank_one

        def scored(name: str) -> Scored | None:
            if self._window_bytes is not None:
                self.pool.unmap()
            (model,) = key[0]
            known = self.sources.statistic(model, name, kind, statistics)
            if known is None:
                return None
            own, below = self.sources.flat(model, name), self.sources.flat(key[1], name)
            return Scored(own, below, known, members.shapes[name])

        return self.sources.notes.small(note, lambda: score_bins(list(members.counts), scored, rank_one), lasting=True)

    def _member(self, model: str, base: str, name: str) -> NotedStatistics:
        """One tensor of a task vector, and what is known of it."""
        if self._window_bytes is not None:
            self.pool.unmap()
        inputs, below = [self.sources.flat(model, name)], self.sources.flat(base, name)
        names = [(model, name), (base, name)]
        window = self.window([*inputs, below])
        return NotedStatistics(inputs, below, (below.numel(),), (), names, self.sources.notes, window)

    def window(self, tensors: Sequence[torch.Tensor]) -> Window | None:
        """How much of these tensors may take memory at a time."""
        if self._window_bytes is None:
            return None
        width = sum(tensor.element_size() for tensor in tensors)
        return Window(max(self._window_bytes // width // CHUNK, 1) * CHUNK, self.pool.unmap)

    @contextmanager
    def naming(self, index: int) -> Iterator[None]:
        """Name the tensor in errors."""
        try:
            yield
        except EvomergeError as error:
            raise self._named(index, error) from error

    def _named(self, index: int, error: EvomergeError) -> EvomergeError:
        part = next((part for part in self.plan.parts if index in part.tensors), None)
        sources = part.sources if part is not None else ()

        def model(found: re.Match[str]) -> str:
            own = sources[int(found[1]) - 1] if 0 < int(found[1]) <= len(sources) else None
            return f"model {own.model!r}" if own is not None and own.made is None else found[0]

        given = re.sub(r"\binput (\d+)\b", model, error.given)  # methods know their inputs by number
        return type(error)(f"tensor {self.plan.tensors[index]!r}: {given}", error.allowed, error.do)

    def flat(self, source: Source, index: int) -> torch.Tensor:
        """A source's tensor as one dimension on the device."""
        if source.made is None:
            return (self._copies or self.sources).flat(source.model, source.tensors[index])
        # By number: slices of two layers may be one and the same, under the names of either.
        if source.identity not in self._stages:
            made = self._made(source.made)
            self._stages[source.identity] = tuple(made[name] for name in source.made.tensors)
        return self._stages[source.identity][index].view(-1)
