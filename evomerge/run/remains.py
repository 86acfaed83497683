"""What a run folder holds when a part of it is gone: its ledger emptied, its per-item scores removed."""

from __future__ import annotations

from evomerge.run.folder import RunFolder
from evomerge.run.ledger_file import LedgerError


def require_ledger(folder: RunFolder, events: int) -> None:
    """Refuse a ledger without an event in a folder where there was a run: it would begin anew over what that left.

    Args:
        folder: of the run.
        events: how many its ledger has.

    Raises:
        LedgerError: names what shows that there was a run.
    """
    if events:
        return
    left = [
        (any(folder.checkpoint.glob("[0-9]*")), folder.checkpoint),
        (any(folder.items.glob("*.safetensors")), folder.items),
        (any(folder.best_recipe.parent.glob("[!.]*")), folder.best_recipe.parent),
    ]
    names = [path.name for there, path in left if there]
    if not names:
        return
    recipe = folder.best_recipe
    # Not as a warm start: whether a search space takes recipes is not known here.
    kept = f"; {recipe} is still the best recipe, which `evomerge merge` and `evomerge evaluate` take"
    raise LedgerError(
        f"{folder.ledger} has no events, and {', '.join(names)} beside it say that there was a run",
        "the ledger that the search wrote",
        f"restore it from a copy, or begin a run in another folder{kept * recipe.is_file()}",
    )


def lost_items(folder: RunFolder, recorded: int) -> str:
    """What is said where files of per-item scores are gone; empty where all are there.

    Args:
        folder: of the run.
        recorded: how many the ledger names.
    """
    found = sum(1 for _ in folder.items.glob("*.safetensors")) if folder.items.is_dir() else 0
    if found >= recorded:
        return ""
    lacks = f"lacks {recorded - found}" if found else "has none"
    return (
        f"{folder.items} {lacks} of the {recorded} files of per-item scores: what the search needs of them is "
        "evaluated again; reports have no tests on the others until their files are restored from a copy"
    )
