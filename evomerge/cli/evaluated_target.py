"""Whether what is to be scored is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import ConfigError
from evomerge.run.inside import LEDGER


def check_there(target: str, overrides: Sequence[str]) -> None:
    """Refuse a run or a recipe that is not there, and a part of a run."""
    from evomerge.cli.sources import hint, near_run, require_no_part

    path = Path(target)
    require_no_part(target)
    if path.exists():
        return
    allowed = "a run folder, a recipe file, a model folder or a hub id"
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"there is no file {target}", allowed)
    if hint(path, beside=True):  # a hub id has a slash too, and no folder of runs before it
        raise ConfigError(f"there is no run {target}", allowed, hint(path, beside=True))
    if "/" not in target and (meant := near_run(path)):
        raise ConfigError(f"there is no run {target}", allowed, f"did you mean {meant!r}?")
    if not overrides:
        do = "a model of the hub needs something to be scored on: fitness.tasks=[...] or experiment=NAME"
        raise ConfigError(f"there is no file or folder {target}", allowed, do)


def check_target(target: str, root: str | None) -> None:
    """Refuse what is neither there nor can be a hub's, and a run without a best recipe."""
    path = Path(target)
    if (path / LEDGER).is_file():
        from evomerge.session.best_recipe import best_recipe

        best_recipe(path)
        return
    if path.is_file():
        return  # opening it says what is wrong with it
    from evomerge.cli.sources import one_model
    from evomerge.models.pool_settings import check_places

    with one_model("model"):
        check_places({"model": target}, root)
