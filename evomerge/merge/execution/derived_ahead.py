"""What methods make of sources, made side by side: each by one thread, as many at a time as torch has.

A decomposition by several threads has other bits for every number of them, and takes little less time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from evomerge.merge.execution.engine import SliceMerge
from evomerge.merge.execution.noted_statistics import NotedStatistics
from evomerge.merge.methods import METHODS, Method


class _Making(NamedTuple):
    """A tensor, or several, on its way."""

    statistics: NotedStatistics
    method: Method
    values: dict[str, Any]
    made: Future[tuple[torch.Tensor, ...]]


class DerivedAhead:
    """What methods make of the sources of some slices, being made.

    Args:
        merges: of the slices, on the CPU; their sources are read by this thread alone.
        workers: make it.
    """

    def __init__(self, merges: Sequence[SliceMerge], workers: ThreadPoolExecutor) -> None:
        self._slices: list[list[_Making]] = []
        promised = 0
        for merge in merges:
            making = []
            for part in merge.plan.parts:
                method = METHODS[part.method or "passthrough"]
                values = dict(part.values)
                derived = method.derived
                if derived is None or derived.simple(values, len(part.sources)) is not None:
                    continue
                for index in part.tensors:
                    if merge.copied(index) is not None:
                        continue
                    with merge.naming(index):
                        statistics = merge.statistics(part, index)
                    if statistics.would_keep(method, values, promised):
                        promised += derived.nbytes(values, statistics.count)
                        with merge.naming(index):
                            beside = statistics.beside(method, values)
                        job = workers.submit(statistics.make, method, values, beside)
                        making.append(_Making(statistics, method, values, job))
            self._slices.append(making)

    def settle(self, number: int) -> None:
        """Note what was made for a slice; what could not be made is found again, and named, by its merge."""
        for each in self._slices[number]:
            if each.made.exception() is None:
                each.statistics.note(each.method, each.values, each.made.result())
        self._slices[number] = []


@contextmanager
def derived_ahead(merges: Sequence[SliceMerge]) -> Iterator[DerivedAhead | None]:
    """Make what the slices need ahead of their merges; ``None`` where that is done one after the other."""
    threads = torch.get_num_threads()
    derives = any(METHODS[part.method or "passthrough"].derived for merge in merges for part in merge.plan.parts)
    if threads == 1 or not derives or any(merge.sources.device.type != "cpu" for merge in merges):
        yield None
        return
    workers = ThreadPoolExecutor(threads, thread_name_prefix="derive")
    try:
        yield DerivedAhead(merges, workers)
    finally:
        workers.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads of torch that start later take the number that was set last, by anyone
