"""What calibration takes and gives, for people: progress, tables, an estimate."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.progress import Progress as Bar
from rich.table import Table

from evomerge.config.schema import Config
from evomerge.recipes.calibration import OF_EXPERTS
from evomerge.report.formatting import count
from evomerge.report.plain_console import errors
from evomerge.session.calibration import Calibration, Job, make_statistics, plan_calibration
from evomerge.utils.sizes import byte_count, size_text

_SIDE = 768
_SHOWN = 3
_FOR_A_WEIGHT = {"gram": 4, "activation": 2, "routing": 2, "expert_outputs": 4, "hessian": 18}
"""Operations for each token and weight: 2 of a forward, 4 of a backward, 12 of its derivative."""


def calibrated(config: Config, *, quiet: bool = False) -> Calibration:
    """Make the statistics that a configuration describes, all kinds where its search space reads none.

    Args:
        config: with a node ``calibration``.
        quiet: show nothing.

    Raises:
        EvomergeError: it describes none, or items that are held-out items; they cannot be made.
    """
    from evomerge.session.calibration_pool import calibration_pool, check_not_held_out

    found = plan_calibration(config, calibration_pool(config), every_kind=True)
    assert found is not None, "there are items, and all kinds are asked for where none is read"
    check_not_held_out(config, found.documents)
    watched_statistics(config, found, quiet=quiet)
    return found


def watched_statistics(config: Config, found: Calibration | None, *, quiet: bool = False) -> float:
    """Make the statistics that are not there, with a bar on standard error unless `quiet`; returns the seconds."""
    if found is None or all(job.into.complete for job in found.jobs):
        return 0.0
    from evomerge.evaluation.devices import choose_device

    device = choose_device(config.statistics.device)
    given = config.statistics.memory
    memory = byte_count(given, "statistics.memory") if given is not None else None
    with Bar(console=errors, disable=quiet or not sys.stderr.isatty(), transient=True) as bar:

        def begin(job: Job) -> Callable[[int, int], None]:
            task = bar.add_task(f"{_named(job)} of {job.model}", total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        seconds = make_statistics(found, device, memory, begin=begin)
    if not quiet:
        errors.print(f"statistics of data made in {seconds:.1f} s, kept in {found.jobs[0].into.folder.parent}")
    return seconds


def made(found: Calibration) -> Table:
    """Of every model and kind: items, tokens, bytes on the disk, and what there are none of."""
    table = Table(
        "model", "kind", "items", "tokens", "size", "tensors", title="Statistics of data", title_justify="left"
    )
    for job in found.jobs:
        index = job.into.index
        files = {str(own["file"]) for own in index["tensors"].values()}
        size = sum((job.into.folder / file).stat().st_size for file in files)
        numbers = f"{index['items']:,}", f"{index['tokens']:,}", size_text(size), f"{len(index['tensors']):,}"
        table.add_row(job.model, _named(job), *numbers)
        for reason, names in index["skipped"].items():
            shown = f"{', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}"
            errors.print(f"no {job.kind} of {count(len(names), 'tensor')} of {job.model}: {reason} ({shown})")
    return table


def estimate(config: Config, found: Calibration) -> str:
    """What making the statistics takes, in words: time and disk, from the tokens and one product of matrices."""
    if not found.jobs and found.pool.info.calibration is not None:
        kinds = dict.fromkeys(kind for _, kind, _ in found.pool.info.calibration.statistics)
        return f"{', '.join(kinds)}: learnt before"
    todo = [job for job in found.jobs if not job.into.complete]
    listed = ", ".join(dict.fromkeys(job.kind for job in found.jobs))
    models = count(len(dict.fromkeys(job.model for job in found.jobs)), "model")
    if not todo:
        return f"{listed} of {models}: made before"
    work = sum(_operations(found, job) for job in todo)
    disk = sum(_bytes(found, job) for job in todo)
    items = max(len(job.items) for job in todo)
    tokens = max(_tokens(job) for job in todo)
    took = work / _speed(config)
    return (
        f"{listed} of {models}, {items:,} items ({tokens:,} tokens) each: about {_time(took)} and at most "
        f"{size_text(disk)} on the disk"
    )


def _operations(found: Calibration, job: Job) -> float:
    """Of all forwards, and backwards where there are; of Gram matrices of square weights."""
    weights = sum(found.pool.info.sizes)
    return _tokens(job) * weights * _FOR_A_WEIGHT.get(job.how.kind, 6)


def _bytes(found: Calibration, job: Job) -> int:
    """At most: layers that read the same share a matrix."""
    layout, pool = found.pool.layout, found.pool
    if job.how.kind in OF_EXPERTS:
        from evomerge.calibration.experts import mixtures
        from evomerge.models.architecture.layout import skeleton

        counts = mixtures(skeleton(pool.config, pool.trust_remote_code)).values()
        return sum(4 * count * (2 if job.how.kind == "routing" else count) for count in counts)
    if job.how.kind not in ("gram", "activation"):
        return 4 * sum(pool.info.sizes)
    sides = [shape[1] for shape in layout.shapes.values() if len(shape) == 2]
    full = job.how.kind == "gram" and job.how.grams == "full"
    return 4 * sum(side * side if full else side for side in sides)


def _tokens(job: Job) -> int:
    """Tokens that a model reads; of images and the like those of squares of 16 by 16."""
    total = 0
    for item in job.items:
        read = getattr(item, "ids", None)
        total += len(read) if read is not None else max(1, *(int(x.size) // 256 for _, x in item.tensors))  # type: ignore[union-attr]
    return total


def _named(job: Job) -> str:
    """A kind, and where a curvature is from."""
    if job.kind != "curvature":
        return job.kind
    return "curvature (optimizer.pt)" if job.how.kind == "curvature" else "curvature (squared gradients)"


def _speed(config: Config) -> float:
    """Operations a second of float32 products here."""
    import torch

    from evomerge.evaluation.devices import choose_device
    from evomerge.session.timing import least_seconds

    device = torch.device(choose_device(config.statistics.device))
    one = torch.ones(_SIDE, _SIDE, device=device)
    seconds = least_seconds(lambda: one @ one, device)
    return 2 * _SIDE**3 / max(seconds, 1e-9) / 3  # a model's products are smaller, and it does more than these


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
