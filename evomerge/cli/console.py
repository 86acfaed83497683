"""What the terminal shows besides the progress of a search: that of a merge, plans, scores, the final table."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress as Bar
from rich.table import Table

from evomerge.report.formatting import count, percent
from evomerge.report.plain_console import console, errors

if TYPE_CHECKING:  # merging needs neither a configuration nor what it builds
    from evomerge.candidate import Evaluation
    from evomerge.config.schema import Config
    from evomerge.recipes.pool_info import PoolInfo
    from evomerge.recipes.slices import Component
    from evomerge.search.phases import Phase
    from evomerge.session.memory import MemoryEstimate
    from evomerge.session.parts import Parts


@contextmanager
def merge_progress(what: str = "merging") -> Iterator[Callable[[int, int], None]]:
    """A bar over the bytes of a model being written, say; yields the function to call with (done, total)."""
    with Bar(console=errors, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def print_plan(config: Config, parts: Parts, memory: MemoryEstimate | None) -> None:
    """What a search with this configuration would take; of memory where it has a pool."""
    from evomerge.cli.estimate import estimate, rows
    from evomerge.models.chat_templates import tokenizer_words
    from evomerge.session.prior import priors_of
    from evomerge.utils.sizes import size_text

    pool = parts.pool
    table = Table(title="The configuration is valid", show_header=False, title_justify="left")
    several = parts.phases if len(parts.phases) > 1 else ()
    if several:
        table.add_row(
            "phases",
            ", then ".join(f"{phase.name} ({phase.evaluations} evaluations{_each(phase)})" for phase in several),
        )
    if pool is None or memory is None:
        table.add_row("genes", str(len(parts.space.spec)))
        _add_race(table, config, parts)
        console.print(table)
        return
    sizes = {name: checkpoint.nbytes for name, checkpoint in pool.checkpoints.items()}
    models = ", ".join(f"{name} ({size_text(nbytes)})" for name, nbytes in sizes.items())
    table.add_row("pool", models + (f"; base: {pool.info.base}" if pool.info.base else ""))
    table.add_row("merged model", f"{pool.info.layers} layers, {len(pool.info.slices)} slices, {pool.info.dtype}")
    network = pool.info.network
    if network is None:
        table.add_row("tokenizer", tokenizer_words(pool))
    else:
        table.add_row("other parts", f"of {network.others}; merged is the {network.name}")
    if pool.info.heads is not None:
        tensors, tasks = pool.info.heads.tensors, pool.info.heads.tasks
        table.add_row("heads", f"{', '.join(tensors)}: carried from {', '.join(tasks)}, not merged")
    if pool.info.kept is not None:
        table.add_row("kept", f"{', '.join(pool.info.kept.tensors)}: those of {pool.info.kept.model}, not merged")
    fitted = f", chosen by the evaluations: {', '.join(parts.fitted)}" if parts.fitted else ""
    table.add_row("genes", ", then ".join(str(len(space.spec)) for space in parts.spaces) + fitted)
    for prior in [*priors_of(parts.spaces), *filter(None, [parts.unread_prior])]:
        table.add_row("prior", prior)
    if pool.info.constant:
        fewer = len(getattr(parts.space, "left_out", ()))
        table.add_row("equal in all models", slice_names(pool.info) + (f": no genes, {fewer} fewer" if fewer else ""))
    table.add_row("objectives", ", ".join(f"{o.name} ({o.direction})" for o in parts.fitness.objectives))
    table.add_row("evaluations", f"{config.search.evaluations}, {parts.evaluator.slots} at a time")
    if parts.adapters is not None:
        table.add_row("to vLLM", str(parts.adapters))
    _add_race(table, config, parts)
    if parts.calibration is not None:
        from evomerge.session.calibration_rows import estimate as calibration_estimate

        table.add_row("calibration", calibration_estimate(config, parts.calibration))
    for what, much in rows(estimate(config, parts, memory)):
        table.add_row(what, much)
    console.print(table)


def _each(phase: Phase) -> str:
    """For how many preferences a phase is searched, where it is."""
    return f", a part for each of {count(len(phase.preferences), 'preference')}" if phase.preferences else ""


def _add_race(table: Table, config: Config, parts: Parts) -> None:
    after = config.search.refine.after
    if after is not None and (parts.race_choice is None or not parts.race_choice.refined):
        never = config.search.evaluations <= int(after)
        few = f"; there are {config.search.evaluations}, so that it never does" if never else ""
        table.add_row("search.refine.after", f"after {after} candidates a Gaussian process proposes{few}")
    if parts.race_choice is not None:
        table.add_row("search.racing.first", f"auto: {parts.race_choice}")
    if parts.race is not None and parts.race.cheap is not None:
        rung = parts.race.cheap
        work: Mapping[str, int] = getattr(parts.cheap, "work", dict)()
        texts = f", {count(work['texts'], 'text')} read by every candidate" if "texts" in work else ""
        kept = f"{percent(rung.keep)} of a generation go on by {rung.decides.name} of cheap"
        table.add_row("cheap rung", f"{kept}{texts}")


def slice_names(info: PoolInfo) -> str:
    """The slices that are equal in all models: ``embed, mlp of 4 layers, norm of every layer``."""
    found = Counter(own.component for own in info.constant)
    total = Counter(own.component for own in info.slices)
    inner = {own.component for own in info.slices if own.layer is not None}

    def named(component: Component) -> str:
        if component not in inner:
            return component
        if found[component] == total[component]:
            return f"{component} of every layer"
        return f"{component} of {count(found[component], 'layer')}"

    return ", ".join(named(component) for component in dict.fromkeys(own.component for own in info.constant))


def print_scores(title: str, evaluation: Evaluation) -> None:
    """Every metric of one evaluation."""
    table = Table("metric", "value", title=title, title_justify="left")
    for name, value in {**evaluation.metrics, **evaluation.objectives}.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)


def print_result(run: Path, config: Config) -> None:
    """The final table of a run, and the commands that come next, with what its configuration asks for."""
    from evomerge.report.outcome import NoBaselinesError
    from evomerge.report.summary import summarize
    from evomerge.report.table import render
    from evomerge.run.folder import RunFolder

    needed = "".join(f" --import {module}" for module in config.imports)
    needed += " --trust" if config.pool.trust_remote_code else ""
    place = shlex.quote(str(run))
    try:
        console.print(render(summarize(run)))
    except NoBaselinesError:
        console.print("There is no table: without baselines the winner has nothing to be compared with.")
    console.print(f"\nWhat it found, in pictures: evomerge report {place}", soft_wrap=True)
    if not RunFolder(run).best_recipe.is_file():  # genomes are the models
        return
    if RunFolder(run).fits_mergekit():
        console.print(f"The recipe for mergekit:    evomerge export {place} --format mergekit{needed}", soft_wrap=True)
    console.print(f"The model, ready to load:   evomerge merge {place} OUT{needed}", soft_wrap=True)
