"""Searches that somebody watches: cautions first, then the progress; for the command line and for notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from evomerge.config.construct import to_builtin
from evomerge.config.resume_command import resumable
from evomerge.config.schema import Config
from evomerge.report.plain_console import console, errors
from evomerge.run.folder import RunFolder
from evomerge.run.observers import Observer
from evomerge.session.calibration_rows import watched_statistics
from evomerge.session.cautions import warn_settings
from evomerge.session.ending import has_ended
from evomerge.session.parts import Parts, build_parts
from evomerge.session.progress import Progress
from evomerge.session.resume import open_run
from evomerge.session.run import run
from evomerge.session.settings import built_from, check_name, check_settings
from evomerge.utils.imports import settled_collector, without_collector


def search(config: Config, observers: Sequence[Observer] = (), *, warned: bool = True) -> RunFolder:
    """Build and check the parts, warn, and search; returns the run folder.

    Args:
        config: of the whole experiment.
        observers: told of what enters the ledger, beside the progress.
        warned: whether settings that make a result hard to trust are said; not of a part of something larger.

    Raises:
        EvomergeError: the configuration, the models or the tasks cannot be used, or everything failed.
        KeyboardInterrupt: a signal ended the search; `resume` goes on with it.
    """
    check_settings(config)
    check_name(config.name)
    with resumable(config.run_dir):
        return _search(config, observers, warned)


def _search(config: Config, observers: Sequence[Observer], warned: bool) -> RunFolder:
    RunFolder(Path(config.run_dir)).require_new()  # said before what takes long
    with without_collector():
        parts = build_parts(config)
        from evomerge.evaluation.devices import choose_device
        from evomerge.session.memory import estimate_memory

    if parts.pool is not None and built_from(config) == "worker":  # before there is a run folder
        choose_device(str(to_builtin(config.evaluator).get("device", "auto")))

    parts.calibration_seconds = watched_statistics(config, parts.calibration)
    if warned:
        warn_settings(config, parts, estimate_memory(config, parts))
    if parts.race_choice is not None and config.display != "quiet":
        console.print(f"search.racing.first=auto: {parts.race_choice}", soft_wrap=True, markup=False)
    _say_adapters(parts, config.display)
    with (
        settled_collector(),
        Progress(config.run_dir, config.search.evaluations, parts.evaluator, config.display) as progress,
    ):
        return run(config, parts, [progress, *observers])


def _say_adapters(parts: Parts, display: str) -> None:
    """Say how candidates go to vLLM, where it scores."""
    if parts.adapters is not None and display != "quiet":
        console.print(f"candidates go to vLLM {parts.adapters}", soft_wrap=True, markup=False, highlight=False)


def resume(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    trust: bool = False,
    display: str | None = None,
    say: Callable[[str], None] = console.print,
    observers: Sequence[Observer] = (),
) -> Config | None:
    """Go on with a run where its ledger ends.

    Args:
        path: the run folder.
        overrides: ``key=value``, of the keys that may change.
        trust: run code of one's own that the run's configuration names.
        display: instead of the run's own.
        say: told how far the run was.
        observers: as of `search`.

    Returns:
        The configuration; ``None`` where the run is finished and there was nothing to do.

    Raises:
        EvomergeError: there is no such run, or it cannot go on like this.
        KeyboardInterrupt: as for `search`.
    """
    with resumable(path):
        return _resume(path, overrides, trust, display, say, observers)


def _resume(
    path: str | Path,
    overrides: Sequence[str],
    trust: bool,
    display: str | None,
    say: Callable[[str], None],
    observers: Sequence[Observer],
) -> Config | None:
    config, again = open_run(path, overrides, trust=trust)
    ended = again.record.finished and has_ended(again.record, again.rules, config.search.evaluations, again.budget)
    if ended and not again.lacks_best:
        return None
    with without_collector():
        parts = build_parts(config, again.folder)
    if parts.pool is not None:
        again.check_pool(parts.pool.info)
    parts.calibration_seconds = watched_statistics(config, parts.calibration)
    say(f"{again.record.count('told', 'search')} evaluations are in the ledger")
    shown = display or config.display
    _say_adapters(parts, shown)
    with (
        settled_collector(),
        Progress(str(path), config.search.evaluations, parts.evaluator, shown, again=True) as progress,
    ):
        run(config, parts, [progress, *observers], again)
    for change in again.changes:
        errors.print(f"changed: {change}")
    return config
