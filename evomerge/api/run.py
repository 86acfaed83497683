"""Runs: what a search found, from its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import RenderableType

from evomerge.api.recipe import Recipe, load_recipe
from evomerge.api.tables import WIDTH, as_html, as_text, frame, row_of
from evomerge.config.keywords import override_words
from evomerge.errors import ConfigError, EvomergeError, RecipeError
from evomerge.export.result import write_result
from evomerge.models.opening import pool_of_recipe
from evomerge.models.pool import Pool
from evomerge.preferences import nearest_by, preference
from evomerge.recipes.slices import Dtype
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.report.history import History, read_history
from evomerge.report.html.front import front_of
from evomerge.report.html.report import write_report
from evomerge.report.outcome import NoBaselinesError
from evomerge.report.status import RunStatus, read_status
from evomerge.report.status_view import StatusPanel
from evomerge.report.study import genes_of
from evomerge.report.summary import Summary, summarize
from evomerge.report.table import render
from evomerge.report.trial import Trial
from evomerge.run.folder import RunFolder
from evomerge.session import watched
from evomerge.session.batch_norms import batch_norms_of_run, give_batch_norms
from evomerge.session.card_scores import held_out_scores
from evomerge.utils.sizes import byte_count


@dataclass(frozen=True)
class FoundCandidate:
    """A candidate that a search found good.

    Attributes:
        candidate: its number in the run.
        score: its first objective, or of the winner the one that decided.
        objectives: all of them by name, on the items of the search.
        metrics: as ``task/metric``, on the same items.
        genes: its genome by gene; empty where genomes are raw weights.
        recipe: ``None`` where genomes are raw weights.
    """

    candidate: int
    score: float
    objectives: Mapping[str, float]
    metrics: Mapping[str, float]
    genes: Mapping[str, Any]
    recipe: Recipe | None = field(repr=False)


class Run(os.PathLike[str]):
    """A run: what was searched, what was found, and what can be done with it. In a notebook it shows its table.

    Everything is read from the folder when it is asked for, also while another process searches. A run can stand
    wherever the path of one can.

    Args:
        path: the run folder.

    Attributes:
        path: the run folder.

    Raises:
        EvomergeError: there is no run.

    >>> run = evomerge.open_run("runs/demo")
    >>> run.status.state, len(run.evaluations)
    ('ended', 16)
    >>> run.best.recipe == run.recipe
    True
    >>> run.report("report.html").name
    'report.html'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._folder = RunFolder.open(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def status(self) -> RunStatus:
        """How far it is: state, evaluations, best score, speed."""
        return read_status(self.path)

    @property
    def summary(self) -> Summary:
        """The comparison of the winner with the sources, their base and their average, with paired tests.

        Raises:
            NoBaselinesError: a run without baselines and without held-out items has nothing to compare with.
        """
        return summarize(self.path)

    @property
    def best(self) -> FoundCandidate | None:
        """The winner; ``None`` before any candidate was scored."""
        history = read_history(self._folder)
        told = [*history.validated.values(), *history.trials]
        trial = next((own for own in told if own.candidate == history.winner), None)
        if trial is None:
            return None
        decided = (history.last_improved or {}).get("objective")
        recipe = load_recipe(self.path) if self._folder.best_recipe.is_file() else None
        found = _found(trial, history, recipe)
        return replace(found, score=float(decided)) if isinstance(decided, int | float) else found

    @property
    def recipe(self) -> Recipe:
        """The winner's recipe.

        Raises:
            RecipeError: there is none: nothing was scored yet, or genomes are raw weights.
        """
        return load_recipe(self.path)

    @property
    def front(self) -> list[FoundCandidate]:
        """The candidates that no other beats in every objective; of a single objective, the winner alone."""
        history = read_history(self._folder)
        if len(history.objectives) < 2:
            return [self.best] if self.best is not None else []
        members = front_of(history.trials, history.objectives)
        return [_found(trial, history, self._recipe_of(trial.candidate)) for trial in members]

    def preferred(self, **weights: float) -> FoundCandidate:
        """The member of `front` that suits these weights of the objectives best, as `evomerge export --preference`.

        Args:
            weights: by objective, 0 or more, of any sum: ``run.preferred(maths=0.7, chat=0.3)``.

        Raises:
            ConfigError: weights that are none, or a run without a front.
        """
        objectives, front = read_history(self._folder).objectives, self.front
        if not front:
            raise ConfigError(f"the run {self.path} has scored nothing yet", "a run with a front")
        chosen = preference(weights, [o.name for o in objectives], "preferred")
        gains = [[o.gain(found.objectives[o.name]) for o in objectives] for found in front]
        return front[nearest_by(np.array(gains), chosen)]

    @property
    def evaluations(self) -> Any:
        """Every model scored on the search items, a row each: a pandas DataFrame, or a list where pandas is missing.

        Columns: ``candidate``, ``name`` (of baselines), ``phase``, ``status``, the objectives by name,
        ``metrics.TASK/METRIC``, ``genes.NAME``, ``seconds``, ``parents``, ``error``.
        """
        history = read_history(self._folder)
        baselines = [row_of(trial, history, name) for name, trial in history.baselines.items()]
        return frame([*baselines, *(row_of(trial, history, None) for trial in history.trials)])

    @property
    def held_out(self) -> Any:
        """The models on the held-out items, a row each, as `evaluations`; ``None`` without a held-out fitness.

        Columns: ``model``, ``kind``, ``status``, the tasks, ``mean``, ``gain`` and ``p`` (both against the best
        baseline).
        """
        try:
            summary = self.summary
        except NoBaselinesError:
            return None
        if summary.split != "held_out":
            return None
        return frame(
            {
                "model": row.name,
                "kind": row.kind,
                "status": row.status,
                **row.scores,
                "mean": row.mean,
                "gain": row.gain,
                "p": row.comparison.p_value if row.comparison is not None else None,
            }
            for row in summary.rows
        )

    def table(self, width: int = WIDTH) -> str:
        """The results as `evomerge search` prints them, in a number of columns; without baselines, the status."""
        return as_text(self._shown(), width)

    def report(self, path: str | os.PathLike[str] | None = None, *, paths: bool = False) -> Path:
        """Write the report, a self-contained HTML page; ``report.html`` in the run folder by default.

        Absolute paths in it are their last names, unless `paths` asks for the whole.
        """
        return write_report([self.path], Path(path) if path is not None else None, paths=paths)

    def resume(
        self,
        *overrides: str,
        display: Literal["auto", "live", "plain", "quiet"] | None = None,
        trust: bool = False,
        **keys: Any,
    ) -> Run:
        """Go on: after an interruption, or with a larger budget (``search={"evaluations": 500}``).

        Args:
            overrides, keys: what shall change, as in `evomerge.search`; some keys may (``evomerge resume --help``).
            display: what is shown meanwhile; as when it began by default.
            trust: run code of one's own that the run's configuration names.

        Returns:
            The run itself.

        Raises:
            EvomergeError: it cannot go on like this; says why.
            KeyboardInterrupt: it was interrupted again.
        """
        words = override_words(overrides, keys)
        if display == "quiet":
            watched.resume(self.path, words, trust=trust, display=display, say=lambda text: None)
        else:
            watched.resume(self.path, words, trust=trust, display=display)
        return self

    def merge(
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: Dtype | None = None,
        max_shard_size: str | int = "5GB",
        trust_remote_code: bool = False,
    ) -> Path:
        """Write the winner's model, with its held-out scores in the model card; as `evomerge merge`.

        Args:
            folder: new or empty.
            dtype: of the model; the recipe's by default.
            max_shard_size: of one file.
            trust_remote_code: run code that the models bring along.

        Returns:
            The folder.

        Raises:
            OutputError, RecipeError, PoolError: as `Recipe.save`.
        """
        recipe = self.recipe
        pool = pool_of_recipe(recipe, trust_remote_code=trust_remote_code)
        asked = recipe if dtype is None else replace(recipe, dtype=dtype)
        scores = held_out_scores(self._folder, asked)
        size, given = byte_count(max_shard_size, "max_shard_size"), batch_norms_of_run(self._folder, asked, pool)
        return write_result(asked, pool, Path(folder), max_shard_bytes=size, scores=scores, given=given)

    def model(self, pool: Pool | None = None, *, device: str = "cpu", trust_remote_code: bool = False) -> Any:
        """The winner's model in memory, with ``model.tokenizer``; see `Recipe.merge`."""
        pool = pool or pool_of_recipe(self.recipe, trust_remote_code=trust_remote_code)
        model = self.recipe.merge(pool, device=device)
        give_batch_norms(model, batch_norms_of_run(self._folder, self.recipe, pool, device=device), pool)
        return model

    def __repr__(self) -> str:
        try:
            status = self.status
        except EvomergeError as error:
            return f"<Run {self.path}: {error}>"
        best = "" if status.best is None else f", best {status.objective} {status.best:.4f}"
        return f"<Run {self.path}: {status.state}, {status.told} of {status.evaluations} evaluations{best}>"

    def _repr_html_(self) -> str:
        return as_html(self._shown())

    def _shown(self) -> RenderableType:
        try:
            return render(self.summary)
        except EvomergeError:  # nothing to compare yet, or damaged: the status says which
            return StatusPanel(self.status)

    def _recipe_of(self, candidate: int) -> Recipe | None:
        file = self._folder.pareto_recipes / f"{candidate}.yaml"
        try:
            return Recipe.of(read_recipe_file(file)) if file.is_file() else None
        except RecipeError:  # the run goes on, and the candidate has left the front
            return None


def open_run(path: str | os.PathLike[str]) -> Run:
    """The run in a folder.

    Raises:
        EvomergeError: there is no run in it; names those beside it.

    >>> evomerge.open_run("runs/none")
    Traceback (most recent call last):
    evomerge.run.ledger_file.LedgerError: run folder runs/none does not exist; ...
    """
    return Run(path)


def _found(trial: Trial, history: History, recipe: Recipe | None) -> FoundCandidate:
    first = next(iter(trial.objectives.values()), float("nan"))
    genes = genes_of(trial, history)
    return FoundCandidate(trial.candidate, first, trial.objectives, trial.metrics, genes, recipe)
