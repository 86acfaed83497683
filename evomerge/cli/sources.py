"""What a verb's RUN, RECIPE or MODEL argument means."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import RecipeError
from evomerge.recipe import Recipe
from evomerge.recipe_yaml import load_recipe

BEST_RECIPE = Path("best") / "recipe.yaml"
LEDGER = "ledger.jsonl"


def run_folder(path: str | Path) -> Path | None:
    """The run folder that `path` is, or that holds the recipe `path`; ``None`` when it is neither."""
    folder = Path(path)
    for candidate in (folder, folder.parent.parent):
        if (candidate / LEDGER).is_file():
            return candidate
    return None


def load_recipe_or_run(path: str) -> Recipe:
    """Read a recipe file, or the best recipe of a run folder.

    Raises:
        RecipeError: there is no such file, or a run without a best recipe.
    """
    file = Path(path)
    if file.is_dir():
        if not (file / LEDGER).is_file():
            raise RecipeError(f"{path} is not a run folder (it has no {LEDGER})", "a run folder or a recipe file")
        file = file / BEST_RECIPE
        if not file.is_file():
            raise RecipeError(f"the run {path} has no best recipe yet", "a run with at least one scored candidate")
    if not file.is_file():
        raise RecipeError(f"there is no file or folder {path}", "a run folder or a recipe file", _hint(file))
    return load_recipe(file.read_text(encoding="utf-8"), str(file))


def _hint(file: Path) -> str:
    folder = file.parent if file.parent.is_dir() else Path()
    runs = folder if folder.name == "runs" else folder / "runs"
    names = sorted(str(run.parent) for run in runs.glob(f"*/{LEDGER}"))
    return f"runs here: {', '.join(names[-5:])}" if names else ""
