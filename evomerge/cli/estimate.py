"""What a search would take, from headers, configurations and counts of items alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table

from evomerge.report.formatting import count, duration, percent
from evomerge.session.memory import MemoryEstimate
from evomerge.utils.memory import MemoryPart
from evomerge.utils.sizes import size_text

if TYPE_CHECKING:
    from evomerge.config.schema import Config
    from evomerge.run.ratings.rules import RatingRules
    from evomerge.session.derived_time import DerivedTime
    from evomerge.session.parts import Parts

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_EVENT = 1500  # bytes of the ledger for a candidate asked and told, without its genes
_GENE = 20


@dataclass(frozen=True)
class Estimate:
    """What a search takes.

    Attributes:
        memory: of the workers, part by part.
        workers: how many there are.
        written: bytes of the winner's model on the disk, as `evomerge merge` writes it.
        run: bytes of the run folder at the end: ledger and per-item scores.
        evaluations: of the search.
        compared: baselines, each scored once on the search's items.
        held_out: those, and the winner, on the held-out items.
        finalists: scored on all items of the search, or of validation.
        people: what raters have to score, in words; empty where nobody is asked.
        share: of its items that a candidate is scored on, on average; 1 where there is no race, or nobody knows.
        work: of one candidate: `documents`, `texts` read and tokens `written` at most; of images that are drawn the
            sampler's steps for all of them, `drawn`; empty where nobody counts.
        batch: texts in a forward; 0 where that is not how a fitness or an engine batches.
        arithmetic: of half precision on this processor, in words; empty where that goes without saying.
        derived: what methods make of the sources; ``None`` where nothing, or on a GPU that is not here.
    """

    memory: MemoryEstimate
    workers: int
    written: int
    run: int
    evaluations: int
    compared: int
    held_out: int
    finalists: int
    work: Mapping[str, int]
    batch: int
    arithmetic: str = ""
    derived: DerivedTime | None = None
    share: float = 1.0
    people: str = ""

    @property
    def forwards(self) -> int:
        """Forwards of one candidate: of whole texts, and of every token that a batch writes at most; 0: not known."""
        if not self.work or not self.batch:
            return 0
        batches = math.ceil(self.work["texts"] / self.batch)
        if drawn := self.work.get("drawn", 0):
            return math.ceil(batches * drawn / max(1, self.work["texts"]))
        return batches + math.ceil(self.work["written"] / self.batch)


def estimate(config: Config, parts: Parts, memory: MemoryEstimate) -> Estimate:
    """What the search of a configuration takes; its pool is there, and its fitness was checked.

    Where the paths of a data flow may become longer than the one the search begins with, so may the resident model.
    """
    from evomerge.evaluation.worker_builder import workers_of
    from evomerge.models.arithmetic import arithmetic_of
    from evomerge.search.starts import compared_recipes
    from evomerge.session.derived_time import estimate_derived

    pool = parts.pool
    assert pool is not None
    per_slice = dict(zip(pool.info.slices, pool.info.sizes, strict=True))
    per_layer = sum(size for slice_, size in per_slice.items() if slice_.layer == 0)
    depth = max(_layers(space, pool.info.layers) for space in parts.spaces)
    outside = sum(size for slice_, size in per_slice.items() if slice_.layer is None)
    inside = sum(per_slice.values()) - outside
    weights = outside + inside + max(0, depth - pool.info.layers) * per_layer
    baselines = len(compared_recipes(pool.info, parts.space))
    compared = baselines if config.search.baselines else 0
    held_out = baselines + 1 if parts.held_out is not None else 0
    work = _work(parts.fitness)
    genes = max(len(space.spec) for space in parts.spaces)
    settings: Any = config.fitness
    return Estimate(
        memory=memory,
        workers=workers_of(parts.evaluator),
        written=weights * _BYTES[pool.info.dtype],
        run=config.search.evaluations * (_EVENT + _GENE * genes + 2 * work.get("documents", 0)),
        evaluations=config.search.evaluations,
        compared=compared,
        held_out=held_out,
        finalists=parts.finalists,
        work=work,
        batch=0 if parts.scored_with.get("engine") else int(settings.get("batch_size") or 0),
        arithmetic=arithmetic_of(pool.info.dtype) if memory.on_host else "",
        derived=estimate_derived(config, parts, memory),
        share=_share(config, parts),
        people=_people(parts, config.search.evaluations + (baselines if config.search.baselines else 0)),
    )


def _people(parts: Parts, candidates: int) -> str:
    """What is asked of raters on the search's items, where the fitness asks any."""
    rating: Callable[[], RatingRules] | None = getattr(parts.fitness, "rating", None)
    if rating is None:
        return ""
    rules = rating()
    who = ", ".join(rules.names) or count(rules.raters, "rater")
    texts = f"{count(candidates, 'candidate')} of {count(rules.items, 'text')} to read"
    return f"{texts}: {candidates * rules.wanted:,} scores by {'each of ' if rules.raters > 1 else ''}{who}"


def _share(config: Config, parts: Parts) -> float:
    """Of its items that a candidate is scored on, where a race says how many go on."""
    from evomerge.session.refining import refined_share, settled

    race = parts.race
    if race is None or race.settings.against not in ("generation", "none"):
        return 1.0
    at_once = refined_share(config, settled(config))
    rung = race.settings.keep_cheap if race.cheap is not None else 1.0
    return race.settings.expected_items(race.total, at_once, rung) / race.total


def rows(found: Estimate) -> list[tuple[str, RenderableType]]:
    """An estimate as lines of a table: what, and how much."""
    written = size_text(found.written)
    lines: list[tuple[str, RenderableType]] = memory_rows(found.memory)
    if found.memory.gpu is not None:
        lines += zip(("a GPU", "", "", ""), found.memory.gpu.lines(), strict=False)
    lines.append(("disk", f"{size_text(found.run)} for the run, {written} to write the winner with `evomerge merge`"))
    if found.arithmetic:
        lines.append(("arithmetic", found.arithmetic))
    if found.derived is not None:
        lines.append(("made of sources", derived_text(found.derived)))
    if found.people:
        lines.append(("people", found.people))
    if found.work:
        work = found.work
        texts = f"{work['documents']:,} items, {work['texts']:,} texts read"
        if drawn := work.get("drawn", 0):
            texts = f"{count(work['texts'], 'image')}, {count(drawn, 'step')} of the sampler"
        written = f", up to {work['written']:,} tokens written" if work["written"] else ""
        batches = f": up to {found.forwards:,} forwards of {found.batch}" if found.batch else ""
        lines.append(("a candidate", f"{texts}{written}{batches}"))
        total = f", {round(found.evaluations * found.share * found.forwards):,} forwards" if found.batch else ""
        more = f"; and once for each of {found.compared} models to compare with" if found.compared else ""
        more += f"; {count(found.finalists, 'finalist')} on all items" if found.finalists else ""
        more += f"; {count(found.held_out, 'model')} on held-out items" if found.held_out else ""
        who, part = count(found.workers, "worker"), f"{percent(found.share)} of " if found.share < 1 else ""
        lines.append(("time", f"{found.evaluations:,} times {part}that{total}, by {who}{more}"))
    return lines


def derived_text(found: DerivedTime) -> str:
    """How long making tensors of the sources will take, in words."""
    parts = []
    if found.tensors:
        parts.append(f"about {duration(found.seconds / found.threads)} once, for {count(found.tensors, 'tensor')}")
    if found.again:
        parts.append(f"about {duration(found.again / found.threads)} again for every candidate")
    if found.threads > 1:
        parts[-1] += f", on {found.threads} threads"
    return f"by {', '.join(found.methods)}: {'; '.join(parts)} (small matrices were measured)"


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


def memory_rows(found: MemoryEstimate) -> list[tuple[str, RenderableType]]:
    """What a worker takes in main memory and on a device, part by part, and what all workers of a machine take."""
    lines: list[tuple[str, RenderableType]] = []
    for place, label in (("host", "memory"), ("device", "device")):
        parts = found.at(place)  # type: ignore[arg-type]
        if not parts:
            continue
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(overflow="fold")
        for part in parts:
            grows = f", up to {size_text(part.bound)}" if part.bound > part.nbytes else ""
            key = f" ({part.key})" if part.key else ""
            table.add_row(part.name, size_text(part.nbytes), f"{part.text}{grows}{key}")
        table.add_row("a worker", size_text(found.worker(place)), _at_once(parts), style="bold")  # type: ignore[arg-type]
        if place == "host":
            has = f", which has {size_text(found.host)}" if found.host else ""
            who = count(found.workers, "worker")
            own = ", and the search" if found.apart else ""
            table.add_row("in all", size_text(found.machine()), f"on a machine with {who}{own}{has}", style="bold")
        lines.append((label, table))
    return lines


def _at_once(parts: Sequence[MemoryPart]) -> str:
    """That not all of it is there at the same time, where that is so."""
    several = {part.during for part in parts} >= {"merging", "scoring"}
    return "scratch or forwards, and all the rest" if several else "all of it"
