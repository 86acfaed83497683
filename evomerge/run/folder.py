"""The folder of a run: where everything lies."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from evomerge.candidate import Split
from evomerge.errors import OutputError, RecipeError, nearest
from evomerge.recipes.pool_info import PoolInfo
from evomerge.run.inside import instead_of_part
from evomerge.run.ledger_file import LedgerError
from evomerge.run.outputs import check_output_folder
from evomerge.run.pool_content import pool_content, pool_info
from evomerge.utils.files import place_problem, read_bounded, write_text_atomic

MAX_POOL = 64 * 2**20  # bytes
NOT_MERGEKITS = "# mergekit cannot express this recipe"
"""What the file for mergekit begins with where there is none."""
ANOTHER_BY_MERGEKIT = "# mergekit makes another model of this than the one that was scored"
"""What it begins with where mergekit can merge it, and not give all that was scored."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files. `create` and `open` check the folder; the constructor does not.

    Attributes:
        path: the run folder, ``runs/NAME``.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def pool(self) -> Path:
        """The pinned source models."""
        return self.path / "pool.json"

    @property
    def ledger(self) -> Path:
        """The record of the run."""
        return self.path / "ledger.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the process that writes the ledger."""
        return self.path / "ledger.lock"

    @property
    def workers(self) -> Path:
        """What each worker does, rewritten every few seconds while the search runs."""
        return self.path / "workers.json"

    @property
    def log(self) -> Path:
        """Warnings, and the tracebacks of candidates that failed."""
        return self.path / "log.txt"

    @property
    def items(self) -> Path:
        """Folder of the per-item scores."""
        return self.path / "items"

    @property
    def checkpoint(self) -> Path:
        """Folder of the strategy's state."""
        return self.path / "checkpoint"

    @property
    def rating(self) -> Path:
        """Folder of what people rate, of a search that has them do so."""
        return self.path / "rating"

    @property
    def best_recipe(self) -> Path:
        """The best recipe so far."""
        return self.path / "best" / "recipe.yaml"

    @property
    def best_mergekit(self) -> Path:
        """The best recipe so far, as a mergekit configuration."""
        return self.path / "best" / "mergekit.yaml"

    def fits_mergekit(self) -> bool:
        """Whether mergekit makes the best recipe's model: else its file begins with a line that says so."""
        try:
            lines = NOT_MERGEKITS.encode(), ANOTHER_BY_MERGEKIT.encode()
            return not read_bounded(self.best_mergekit, MAX_POOL).startswith(lines)
        except OSError:
            return True  # not known: whoever exports it is told

    @property
    def pareto(self) -> Path:
        """The list of the Pareto front, of a run with several objectives."""
        return self.path / "best" / "pareto.yaml"

    @property
    def pareto_recipes(self) -> Path:
        """Folder of the recipes of the Pareto front."""
        return self.path / "best" / "pareto"

    def items_file(self, candidate: int, split: Split) -> Path:
        """The per-item scores of one evaluation."""
        return self.items / f"{split}-{candidate}.safetensors"

    def responses_file(self, candidate: int, split: Split) -> Path:
        """What the model of one evaluation answered, where that was kept."""
        return self.items / f"{split}-{candidate}-responses.json"

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """Make a new run folder, its parents too.

        Raises:
            OutputError: something is there already, or the folder cannot be made.
        """
        folder = cls(Path(path))
        folder.require_new()
        try:
            folder.items.mkdir(parents=True, exist_ok=True)
            folder.best_recipe.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"run folder {folder.path} cannot be made: {error.strerror}",
                "a place you can write",
                "choose another one",
            ) from error
        return folder

    def require_place(self) -> None:
        """Raise `OutputError` unless the folder is there or can be made."""
        if not self.path.parts:
            raise OutputError("run_dir is empty", "a folder that does not exist yet", "set run_dir, or leave it out")
        problem = place_problem(self.path)
        if problem:
            raise OutputError(f"run folder {self.path} cannot be made: {problem}", "a place you can write")

    def require_new(self) -> None:
        """Raise `OutputError` unless a run may begin here: before what takes long."""
        if os.path.lexists(self.path) and (not self.path.is_dir() or any(self.path.iterdir())) and self.path.parts:
            held = self.ledger.exists()
            raise OutputError(
                f"run folder {self.path} {'holds a run' if held else 'is not an empty folder'}",
                "a folder that does not exist yet, or is empty",
                "choose another one, or remove it" + ("; `evomerge resume RUN` goes on with the run in it" * held),
            )
        check_output_folder(self.path)
        self.require_place()

    def _check_kinds(self) -> None:
        """`LedgerError` where a file or folder is something else: opening a pipe would wait for its writer."""
        files = (self.config, self.pool, self.lock, self.workers, self.log, self.best_recipe, self.best_mergekit)
        texts = tuple(items_texts(self, split) for split in get_args(Split))
        folders = (self.items, self.best_recipe.parent, self.checkpoint, self.rating)
        for path in (*folders, *files, self.pareto, *texts):
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:
                continue
            except NotADirectoryError:  # the folder that it would lie in is said already
                continue
            except OSError as error:
                raise LedgerError(f"{path} cannot be read: {error.strerror}", "the folder of a run") from error
            wanted = stat.S_ISDIR(mode) if path in folders else stat.S_ISREG(mode)
            if not wanted:
                kind = "folder" if path in folders else "regular file"
                raise LedgerError(f"{path} is no {kind}", "the folder that a search wrote", "remove it, or take a copy")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of a run that was started before.

        Raises:
            LedgerError: there is no ledger in it, or one of its files is a link: what is written to a run that came
                from elsewhere must not land outside it.
        """
        folder = cls(Path(path))
        if not os.path.isfile(folder.ledger):  # pathlib's raises for names that are too long
            part, give = instead_of_part(path, recipes=False)
            if part:
                raise LedgerError(part, "the folder of a run", give)
            if os.path.exists(folder.path) and not os.path.isdir(folder.path):
                raise LedgerError(f"{folder.path} is a file", "the folder of a run", "give the folder itself")
            missing = "has no ledger.jsonl" if os.path.isdir(folder.path) else "does not exist"
            if os.path.lexists(folder.ledger):
                missing = f"has a {_what(folder.ledger)} for a ledger.jsonl"
            parent, own = folder.path.parent, os.path.abspath(folder.path)
            found = (entry.parent for entry in parent.glob("*/ledger.jsonl") if entry.is_file())
            runs = [run.name for run in found if os.path.abspath(run) != own]
            raise LedgerError(
                f"run folder {folder.path} {missing}",
                f"the folder of a run; in {parent} {nearest(folder.path.name, runs)}",
                "give the folder that a search wrote",
            )
        folder._check_kinds()
        for inner in (folder.path, folder.best_recipe.parent, folder.checkpoint):
            links = [entry.name for entry in os.scandir(inner) if entry.is_symlink()] if inner.is_dir() else []
            if links:
                raise LedgerError(
                    f"{inner / min(links)} is a symbolic link",
                    "a run's files lie in its folder",
                    "put the file itself in the place of the link",
                )
        return folder

    def sweep(self) -> None:
        """Remove what killed sessions left half written; for the one that holds the ledger."""
        rated = (self.rating, *self.rating.glob("*/"))
        for folder in (self.path, self.items, self.best_recipe.parent, self.pareto_recipes, *rated):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def write_pool(self, info: PoolInfo) -> None:
        """Write ``pool.json``: the models with what pins them, and the slices of their architecture."""
        write_text_atomic(self.pool, json.dumps(pool_content(info), indent=2) + "\n")

    def read_pool(self) -> PoolInfo:
        """The pool of the run.

        Raises:
            LedgerError: ``pool.json`` is missing or malformed.
        """
        try:
            return pool_info(json.loads(read_bounded(self.pool, MAX_POOL, follow=False)))
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            raise LedgerError(
                f"{self.pool} is gone" if gone else f"{self.pool} cannot be read: {error.strerror}",
                "the file that the search wrote, with the models of the run",
                "restore it from a copy, or begin a new run",
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, RecipeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise LedgerError(f"{self.pool} is malformed ({reason})", "the file that the search wrote") from error


def _what(path: Path) -> str:
    """What lies at a path where no regular file does."""
    if os.path.isdir(path):
        return "folder"
    return "special file" if os.path.exists(path) else "link to nothing"


def items_texts(folder: RunFolder, split: Split) -> Path:
    """The texts of the items of a split, which reports show."""
    return folder.items / f"{split}-texts.json"
