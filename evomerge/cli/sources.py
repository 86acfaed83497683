"""What a verb's RUN, RECIPE or MODEL argument means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import RecipeError
from evomerge.recipe import Recipe
from evomerge.recipe_yaml import load_recipe

if TYPE_CHECKING:
    from evomerge.export.model_card import ScoreRow

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


def held_out_scores(path: str, recipe: Recipe) -> list[ScoreRow]:
    """The rows of a model card's table, when `path` belongs to a run whose winner is this very recipe."""
    from evomerge.export.model_card import ScoreRow
    from evomerge.report.summary import summarize

    folder = run_folder(path)
    if folder is None or not (folder / BEST_RECIPE).is_file():
        return []
    if load_recipe((folder / BEST_RECIPE).read_text(encoding="utf-8")) != recipe:
        return []
    summary = summarize(folder)
    if summary.split != "held_out":
        return []
    metric = {task.task: f"{task.task}/{task.metric}" for task in summary.tasks}
    rows = sorted(summary.rows, key=lambda row: row.kind != "evolved")
    return [ScoreRow(row.name, {metric[task]: value for task, value in row.scores.items()}) for row in rows]


def _hint(file: Path) -> str:
    folder = file.parent if file.parent.is_dir() else Path()
    runs = folder if folder.name == "runs" else folder / "runs"
    names = sorted(str(run.parent) for run in runs.glob(f"*/{LEDGER}"))
    return f"runs here: {', '.join(names[-5:])}" if names else ""
