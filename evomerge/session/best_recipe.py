"""The best recipe of a run as a file, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

from evomerge.config.resume_command import resume_command
from evomerge.errors import RecipeError
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger
from evomerge.run.ledger_file import Event

BEST_RECIPE = Path("best") / "recipe.yaml"


def best_recipe(path: Path) -> Path:
    """The file of a run's best recipe.

    Args:
        path: the run folder.

    Raises:
        RecipeError: there is none: nothing was scored yet, genomes are raw weights, or it is gone.
        LedgerError: it is gone, and the ledger is damaged.
    """
    file = path / BEST_RECIPE
    if file.is_file():
        return file
    winner: Event | None = None
    for event in read_ledger(RunFolder(path)):
        winner = event if event["event"] == "improved" else winner
    if winner is None:
        raise RecipeError(f"the run {path} has no best recipe yet", "a run with at least one scored candidate")
    if winner.get("recipe_hash") is None:
        raise RecipeError(
            f"the run {path} has no best recipe: its candidates are raw weights", "a run whose winner is a recipe"
        )
    raise RecipeError(
        f"the best recipe of {path}, candidate {winner['candidate']}, is in its ledger, and {file} is gone",
        "the file that the search wrote",
        f"`{resume_command(path)}` writes it again, from what is recorded",
    )
