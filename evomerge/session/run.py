"""Runs a search into its run folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import ClassVar, Literal, Protocol

from evomerge.candidate import Split
from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config
from evomerge.protocols import Evaluator, Fitness
from evomerge.run.checkpoint import Checkpoints
from evomerge.run.folder import RunFolder
from evomerge.run.items import write_texts
from evomerge.run.ledger import Ledger
from evomerge.run.observers import Observer, Observers
from evomerge.search.hooks import BestWriter, GaveUpError
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.session.answers import AnswerKeeper
from evomerge.session.best_folder import BestFolder
from evomerge.session.checkpointing import CheckpointSaver
from evomerge.session.fork import ForkedEvaluator, Source
from evomerge.session.new_run import NewRun
from evomerge.session.parts import Parts
from evomerge.session.rated import RatedEvaluator, rating_rules
from evomerge.session.resume import library_versions
from evomerge.session.shares import metric_shares
from evomerge.session.signals import Interrupts
from evomerge.trackers.background import tracking


class Start(Protocol):
    """How a run starts: `NewRun`, or `Resumed` for one that is gone on with.

    Attributes:
        resumed: whether something was written before.
    """

    resumed: ClassVar[bool]

    def open_folder(self, config: Config, parts: Parts) -> RunFolder:
        """The run folder, with its configuration and pool written down."""

    def open_ledger(self, folder: RunFolder, sync: Literal["every", "interval"], observe: Observers) -> Ledger:
        """The ledger, open for appending."""

    def check(self, fingerprint: str, cheap: str | None) -> None:
        """`EvomergeError` where the fitness is not the one of the run, or that of the cheap rung, if there is one."""

    def wrap(self, keep: BestWriter, evaluator: Evaluator, incumbent: Incumbent) -> tuple[BestWriter, Evaluator]:
        """What writes the best down, and where candidates are evaluated, with what was told before."""

    def begin(self, search: Search) -> None:
        """Bring the search to where it begins."""


def run(config: Config, parts: Parts, observers: Sequence[Observer] = (), start: Start | None = None) -> RunFolder:
    """Run a search into its run folder. The parts are closed at the end, whatever happens.

    Args:
        config: of the whole experiment.
        parts: built from it.
        observers: told of everything that enters the ledger.
        start: a run to go on with; ``None`` for a new one, whose folder is made.

    Raises:
        KeyboardInterrupt: a signal ended it; what was told is in the ledger.
        GaveUpError: everything failed; the same.
    """
    settings, beginning = config.search, start or NewRun()
    folder = beginning.open_folder(config, parts)
    objectives = parts.fitness.objectives
    sync: Literal["every", "interval"] = "interval" if settings.sync == "interval" else "every"
    incumbent = Incumbent(objectives, settings.best or settings.scalarise, settings.weights)
    source = Source(RunFolder.open(config.from_run)) if config.from_run is not None else None
    with (
        Interrupts() as interrupts,
        closing(source) if source is not None else nullcontext(),
        tracking(parts.trackers, folder, to_builtin(config), resumed=beginning.resumed) as trackers,
        closing(parts.evaluator),
        beginning.open_ledger(folder, sync, Observers([*observers, *trackers])) as ledger,
        Checkpoints(
            folder,
            every=settings.checkpoint.every,
            evaluations=settings.checkpoint.evaluations,
            keep=settings.checkpoint.keep,
        ) as checkpoints,
    ):
        fingerprint = parts.evaluator.fingerprint("search")
        cheap = parts.evaluator.fingerprint("cheap") if parts.cheap is not None else None
        beginning.check(fingerprint, cheap)
        evaluator: Evaluator = parts.evaluator
        asked = rating_rules(parts.fitness, parts.validation, parts.held_out)
        if asked:
            evaluator = RatedEvaluator(evaluator, asked, folder, interrupts.wanted)
        if source is not None:
            source.check(fingerprint)
            evaluator = ForkedEvaluator(evaluator, source)
        keep, evaluator = beginning.wrap(BestFolder(folder, parts.pool), evaluator, incumbent)
        try:
            ledger.append(
                "started",
                seed=settings.seed,
                evaluations=settings.evaluations,
                objectives={o.name: o.direction for o in objectives},
                shares=_shares(parts),
                **({"stop_rules": parts.rules.event} if parts.rules.event else {}),
                **({"left_open": list(parts.left_open)} if parts.left_open else {}),
                **({"race": parts.race_choice.event} if parts.race_choice is not None else {}),
                **({"overlap": parts.overlap} if parts.overlap is not None else {}),
                fitness=fingerprint,
                **({"cheap": cheap} if cheap is not None else {}),
                **({"calibration": parts.calibration_seconds} if parts.calibration is not None else {}),
                **parts.scored_with,
                versions=library_versions(),
                **({"from_run": source.event} if source is not None else {}),
            )
            search = Search(
                pool=parts.pool.info if parts.pool is not None else None,
                phases=[one for phase in parts.phases for one in phase.each()],
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
                responses=AnswerKeeper(folder, {"search": parts.fitness, "held_out": parts.held_out}),
                give_up=settings.give_up,
                race=parts.race,
                finalists=parts.finalists,
                rescores=parts.rescores,
                rules=parts.rules,
            )
            search.state.leaders.apart = parts.validation is not None
            beginning.begin(search)
            interrupts.settled = lambda: search.state.settled
            search.run()
        except (KeyboardInterrupt, GaveUpError) as error:
            reason = interrupts.name or "SIGINT" if isinstance(error, KeyboardInterrupt) else error.given
            ledger.append("interrupted", reason=reason)
            raise
    # For reports: the items that the winner is judged by.
    write_texts(folder, "search" if parts.held_out is None else "held_out", parts.held_out or parts.fitness)
    return folder


def _shares(parts: Parts) -> dict[Split, list[list[object]]]:
    """What the metrics of each kind of items count, where their fitness says so."""
    fitnesses: dict[Split, Fitness | None] = {"search": parts.fitness, "held_out": parts.held_out}
    found: dict[Split, list[list[object]]] = {}
    for split, fitness in fitnesses.items():
        if hasattr(fitness, "shares"):
            found[split] = [share.to_json() for share in metric_shares(fitness)]
    return found
