"""What a search would take, from headers, configurations and counts of items alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.report.formatting import count
from evomerge.utils.sizes import size_text

if TYPE_CHECKING:
    from evomerge.config.schema import Config
    from evomerge.session.parts import Parts

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_EVENT = 1500  # bytes of the ledger for a candidate asked and told, without its genes
_GENE = 20


@dataclass(frozen=True)
class Estimate:
    """What a search takes.

    Attributes:
        sources: bytes of the models' files, mapped into memory once on each machine.
        folded: bytes of tensors with an adapter folded in, which are kept beside them.
        resident: bytes of weights that each worker has on its device: the largest of the first candidates' models.
        workers: how many there are.
        on_host: whether the device is the processor, whose memory holds the residents too.
        written: bytes of the winner's model on the disk, as `evomerge merge` writes it.
        run: bytes of the run folder at the end: ledger and per-item scores.
        evaluations: of the search, baselines not counted; `others` are those and the held-out ones.
        work: of one candidate: `documents`, `texts` read and tokens `written` at most; empty where nobody counts.
        batch: texts in a forward.
    """

    sources: int
    folded: int
    resident: int
    workers: int
    on_host: bool
    written: int
    run: int
    evaluations: int
    others: int
    work: Mapping[str, int]
    batch: int

    @property
    def host(self) -> int:
        """Bytes of a machine with all workers: the mapped files, should they all stay, and what is kept beside."""
        return self.sources + self.folded + (self.workers * self.resident if self.on_host else 0)

    @property
    def forwards(self) -> int:
        """Forwards of one candidate: of whole texts, and one for every token that a batch writes at most."""
        if not self.work:
            return 0
        batches = math.ceil(self.work["texts"] / self.batch)
        return batches + math.ceil(self.work["written"] / self.batch)


def estimate(config: Config, parts: Parts) -> Estimate:
    """What the search of a configuration takes; its pool is there, and its fitness was checked.

    Where the paths of a data flow may become longer than the one the search begins with, so may the resident model.
    """
    pool = parts.pool
    assert pool is not None
    files = {info.file: 0 for checkpoint in pool.checkpoints.values() for info in checkpoint.tensors.values()}
    sources = sum(file.stat().st_size for file in files)
    per_slice = dict(zip(pool.info.slices, pool.info.sizes, strict=True))
    per_layer = sum(size for slice_, size in per_slice.items() if slice_.layer == 0)
    depth = max(_layers(space, pool.info.layers) for space in (phase.space(None) for phase in parts.phases))
    outside = sum(size for slice_, size in per_slice.items() if slice_.layer is None)
    inside = sum(per_slice.values()) - outside
    weights = outside + inside + max(0, depth - pool.info.layers) * per_layer
    resident = weights * _BYTES[pool.info.dtype]
    baselines = len(pool.info.refs) + 1
    others = (baselines if config.search.baselines else 0) + (baselines + 1 if parts.held_out is not None else 0)
    work = _work(parts.fitness)
    genes = max(len(phase.space(None).spec) for phase in parts.phases)
    settings: Any = config.fitness
    return Estimate(
        sources=sources,
        folded=sum(checkpoint.memory for checkpoint in pool.checkpoints.values()),
        resident=resident,
        workers=parts.evaluator.slots,
        on_host=_on_host(config),
        written=resident,
        run=config.search.evaluations * (_EVENT + _GENE * genes + 2 * work.get("documents", 0)),
        evaluations=config.search.evaluations,
        others=others,
        work=work,
        batch=int(settings.get("batch_size") or 1),
    )


def rows(found: Estimate) -> list[tuple[str, str]]:
    """An estimate as lines of a table: what, and how much."""
    each = "each worker's memory" if found.on_host else "each worker's device"
    folded = f", {size_text(found.folded)} with adapters folded in" if found.folded else ""
    sources, written = size_text(found.sources), size_text(found.written)
    lines = [
        ("memory", f"{size_text(found.resident)} of weights on {each}, and what forwards need"),
        ("", f"{size_text(found.host)} on a machine with all workers: {sources} of sources, mapped{folded}"),
        ("disk", f"{size_text(found.run)} for the run, {written} to write the winner with `evomerge merge`"),
    ]
    if found.work:
        work = found.work
        texts = f"{work['documents']:,} items, {work['texts']:,} texts read"
        written = f", up to {work['written']:,} tokens written" if work["written"] else ""
        lines.append(("a candidate", f"{texts}{written}: up to {found.forwards:,} forwards of {found.batch}"))
        total = found.evaluations * found.forwards
        more = f"; and once for each of {found.others} models to compare with" if found.others else ""
        who = count(found.workers, "worker")
        lines.append(("time", f"{found.evaluations:,} times that, {total:,} forwards, by {who}{more}"))
    return lines


def _layers(space: Any, otherwise: int) -> int:
    """Layers of the recipe that a space's start means."""
    try:
        recipe = space.decode(space.spec.initial)
    except Exception:  # a space of one's own may need more to decode than there is now
        return otherwise
    if recipe is None:
        return otherwise
    return 1 + max((entry.slice.layer for entry in recipe.slices if entry.slice.layer is not None), default=-1)


def _work(fitness: Any) -> Mapping[str, int]:
    """What the fitness counts, where it does."""
    count = getattr(fitness, "work", None)
    return dict(count()) if count is not None else {}


def _on_host(config: Config) -> bool:
    """Whether workers compute on the processor."""
    settings: Any = config.evaluator
    device = str(settings.get("device", "auto"))
    if device != "auto":
        return device == "cpu"
    if "gpus_per_worker" in settings:
        return not float(settings.get("gpus_per_worker") or 0)
    import torch

    return not torch.cuda.is_available()
