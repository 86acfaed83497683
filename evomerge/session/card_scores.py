"""The scores that a model card shows: those of a run on its held-out items."""

from __future__ import annotations

import logging

from evomerge.errors import EvomergeError
from evomerge.export.model_card import ScoreRow
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.report.outcome import NoBaselinesError
from evomerge.report.summary import summarize
from evomerge.run.folder import RunFolder

_log = logging.getLogger(__name__)


def held_out_scores(folder: RunFolder, recipe: Recipe) -> list[ScoreRow]:
    """The winner's row and those of the baselines; none where the run's winner is another recipe, or was not scored.

    Nor where its ledger cannot be read to the end, which is logged: a recipe can always be merged.
    """
    if not folder.best_recipe.is_file() or read_recipe_file(folder.best_recipe) != recipe:
        return []
    try:
        summary = summarize(folder)
    except NoBaselinesError:  # nor held-out items, on which baselines are always scored
        return []
    except EvomergeError as error:
        _log.warning("the model card has no scores: %s", error)
        return []
    if summary.split != "held_out":
        return []
    metric = {task.task: task.metric for task in summary.tasks}
    rows = sorted(summary.rows, key=lambda row: row.kind != "evolved")
    return [ScoreRow(row.name, {metric[task]: value for task, value in row.scores.items()}) for row in rows]
