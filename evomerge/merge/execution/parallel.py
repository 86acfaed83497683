"""Many slices at once: all is prepared first, then every thread has the same number of elements to merge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import torch

from evomerge.merge.execution.copies_ahead import CopiesAhead
from evomerge.merge.execution.derived_ahead import derived_ahead
from evomerge.merge.execution.engine import Made, SliceMerge
from evomerge.merge.execution.finite_checks import FiniteChecks
from evomerge.merge.execution.sources import Sources
from evomerge.merge.execution.tensor_merge import TensorMerge
from evomerge.merge.mixes.cpu_mix import PART, MixCall
from evomerge.merge.planning.slice_plan import Part, SlicePlan
from evomerge.models.pool import Pool

TRANSIENT = 1 << 26
"""Bytes of sources that are made for a merge and not kept: so many are there before what they are for is merged."""


@dataclass
class _Job:
    """A tensor to merge.

    Attributes:
        slice, index: numbers of its slice and, within that, of the tensor.
        merge, call, out: what merges it, ready, and into what.
        bad: whether a result is not finite.
    """

    slice: int
    index: int
    merge: TensorMerge
    call: MixCall
    out: torch.Tensor
    bad: bool = False


def merge_slices(
    plans: Sequence[SlicePlan],
    sources: Sources,
    outs: Sequence[Mapping[str, torch.Tensor]],
    made: Made | None = None,
    step: Callable[[], None] = lambda: None,
    checks: FiniteChecks | None = None,
    copies: CopiesAhead | None = None,
) -> list[float]:
    """Merge slices into given tensors; returns the seconds that each took, as if it had all threads to itself.

    Threads that run Python wait for each other, so they are given long calls of the kernels only.

    Args:
        plans: of the slices.
        sources: the pool's tensors.
        outs: for each, the tensors to write into by output name.
        made: as for `engine.merge_slice`.
        step: called for each slice, once all is known of its sources that its merge needs.
        checks: collects what is not known yet of results on accelerators, for the caller to settle; settled here for
            ``None``.
        copies: gives the models' tensors where they are copied ahead of these slices and those that follow.

    Raises:
        EvomergeError: a tensor cannot be read or merged; it is named.
    """
    later = FiniteChecks() if checks is None else checks
    merges = [SliceMerge(plan, sources.pool, sources, made, checks=later, copies=copies) for plan in plans]
    seconds, jobs, passing = [0.0] * len(plans), list[_Job](), 0
    folded = {name for name, checkpoint in sources.pool.checkpoints.items() if checkpoint.changed}
    with derived_ahead(merges) as ahead:
        for number, (plan, merge) in enumerate(zip(plans, merges, strict=True)):
            start = time.perf_counter()
            if ahead is not None:
                with sources.notes.noting():
                    ahead.settle(number)
            for part in plan.parts:
                for index in part.tensors:
                    out = outs[number][plan.tensors[index]]
                    ready = merge.prepared(part, index, out) if sources.device.type == "cpu" else None
                    if ready is None:
                        merge.tensor(part, index, out)
                    else:
                        jobs.append(_Job(number, index, *ready, out))
                        passing += _passing(part, index, sources.pool, folded) * out.nbytes
                        if passing >= TRANSIENT:  # of adapters that are folded for this candidate: not all at once
                            _finish(jobs, merges, seconds)
                            passing = 0
            seconds[number] = time.perf_counter() - start
            step()
    _finish(jobs, merges, seconds)
    if checks is None:
        later.settle()
    return seconds


def _passing(part: Part, index: int, pool: Pool, folded: Set[str]) -> int:
    """How many sources of a tensor have an adapter folded in for this merge only."""
    if not folded:
        return 0
    models = [source for source in part.sources if source.made is None and source.model in folded]
    return sum(not pool.is_kept(source.model, source.tensors[index]) for source in models)


def _finish(jobs: list[_Job], merges: Sequence[SliceMerge], seconds: list[float]) -> None:
    """Carry all jobs out and let go of them, and of their sources.

    Raises:
        EvomergeError: a result is not finite; its tensor is named.
    """
    _run(jobs, seconds)
    for job in jobs:
        if job.bad:
            with merges[job.slice].naming(job.index):
                raise job.merge.not_finite(job.out.dtype)
    jobs.clear()


def _run(jobs: Sequence[_Job], seconds: list[float]) -> None:
    """Carry all jobs out, each thread an equal share of the elements."""
    total = sum(job.call.count for job in jobs)
    threads = max(1, min(torch.get_num_threads(), -(-total // PART)))
    shares: list[list[tuple[_Job, int, int]]] = [[]]
    room = share = -(-total // threads // PART) * PART
    for job in jobs:
        begin = 0
        while begin < job.call.count:
            if room <= 0:
                shares.append([])
                room = share
            # A part begins at a multiple of `PART`, which whole vectors and partial sums want.
            end = min(begin + -(-room // PART) * PART, job.call.count)
            shares[-1].append((job, begin, end))
            room -= end - begin
            begin = end
    spent = [[0.0] * len(seconds) for _ in shares]

    def work(number: int) -> None:
        for job, begin, end in shares[number]:
            start = time.perf_counter()
            job.bad |= bool(job.call(begin, end))
            spent[number][job.slice] += (time.perf_counter() - start) / len(shares)

    helpers = [threading.Thread(target=work, args=(i,), name=f"merge-{i}") for i in range(1, len(shares))]
    for helper in helpers:
        helper.start()
    work(0)
    for helper in helpers:
        helper.join()
    for each in spent:
        for number, took in enumerate(each):
            seconds[number] += took
