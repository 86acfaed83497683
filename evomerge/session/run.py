"""Runs a search into its run folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import Literal, cast

from omegaconf import DictConfig

from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config, to_yaml
from evomerge.protocols import Evaluator
from evomerge.run.checkpoint import Checkpoints
from evomerge.run.folder import RunFolder
from evomerge.run.items import write_texts
from evomerge.run.ledger import Ledger
from evomerge.run.observers import Observer, Observers
from evomerge.search.hooks import BestWriter, GaveUpError
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.session.best_folder import BestFolder
from evomerge.session.checkpointing import CheckpointSaver, begin
from evomerge.session.fork import ForkedEvaluator, Source
from evomerge.session.parts import Parts
from evomerge.session.replay import ContinuedLedger, RecordedEvaluator
from evomerge.session.resume import Resumed, library_versions
from evomerge.session.signals import Interrupts
from evomerge.trackers.background import tracking
from evomerge.utils.files import write_text_atomic


def run(config: Config, parts: Parts, observers: Sequence[Observer] = (), again: Resumed | None = None) -> RunFolder:
    """Run a search into its run folder. The parts are closed at the end, whatever happens.

    Args:
        config: of the whole experiment.
        parts: built from it.
        observers: told of everything that enters the ledger.
        again: a run to go on with; ``None`` for a new one, whose folder is made.

    Raises:
        KeyboardInterrupt: a signal ended it; what was told is in the ledger.
        GaveUpError: everything failed; the same.
    """
    settings = config.search
    folder = RunFolder.create(config.run_dir) if again is None else again.folder
    if again is None:
        write_text_atomic(folder.config, to_yaml(cast(DictConfig, config)))
        if parts.pool is not None:
            folder.write_pool(parts.pool.info)
    objectives = parts.fitness.objectives
    sync: Literal["every", "interval"] = "interval" if settings.sync == "interval" else "every"
    incumbent = Incumbent(objectives, settings.best or settings.scalarise, settings.weights)
    source = Source(RunFolder.open(config.from_run)) if config.from_run is not None else None
    with (
        Interrupts() as interrupts,
        closing(source) if source is not None else nullcontext(),
        tracking(parts.trackers, folder, to_builtin(config), resumed=again is not None) as trackers,
        closing(parts.evaluator),
        _ledger(folder, sync, again, Observers([*observers, *trackers])) as ledger,
        Checkpoints(
            folder,
            every=settings.checkpoint.every,
            evaluations=settings.checkpoint.evaluations,
            keep=settings.checkpoint.keep,
        ) as checkpoints,
    ):
        fingerprint = parts.evaluator.fingerprint("search")
        if again is not None:
            folder.sweep()
            again.check(fingerprint)
            again.keep_budget()
        keep: BestWriter = BestFolder(folder, parts.pool)
        evaluator: Evaluator = parts.evaluator
        if source is not None:
            source.check(fingerprint)
            evaluator = ForkedEvaluator(evaluator, source)
        if again is not None and isinstance(ledger, ContinuedLedger):
            keep, evaluator = again.keeper(ledger, keep, incumbent), RecordedEvaluator(evaluator, again.record)
        try:
            ledger.append(
                "started",
                seed=settings.seed,
                evaluations=settings.evaluations,
                objectives={o.name: o.direction for o in objectives},
                fitness=fingerprint,
                versions=library_versions(),
                **({"from_run": source.event} if source is not None else {}),
            )
            search = Search(
                pool=parts.pool.info if parts.pool is not None else None,
                phases=parts.phases,
                evaluator=evaluator,
                incumbent=incumbent,
                ledger=ledger,
                keep=keep,
                baselines=settings.baselines,
                held_out=parts.held_out is not None,
                ordered=settings.ordered,
                in_flight=settings.in_flight,
                warm=lambda space, number: parts.warm(space, fingerprint, number == 0),
                stop=interrupts.wanted,
                save=CheckpointSaver(checkpoints, ledger),
                give_up=settings.give_up,
            )
            if isinstance(ledger, ContinuedLedger):
                begin(search, ledger)
            interrupts.settled = lambda: search.state.settled
            search.run()
        except (KeyboardInterrupt, GaveUpError) as error:
            reason = interrupts.name or "SIGINT" if isinstance(error, KeyboardInterrupt) else error.given
            ledger.append("interrupted", reason=reason)
            raise
    # For reports: the items that the winner is judged by.
    write_texts(folder, "search" if parts.held_out is None else "held_out", parts.held_out or parts.fitness)
    return folder


def _ledger(folder: RunFolder, sync: Literal["every", "interval"], again: Resumed | None, observe: Observers) -> Ledger:
    if again is None:
        return Ledger(folder, sync=sync, observe=observe)
    return ContinuedLedger(folder, again.record, resumed=again.event, sync=sync, observe=observe)
