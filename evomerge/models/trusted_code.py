"""Remembers code that models bring along and that the user has asked to run: for this user, on this machine.

A search asks for it with ``pool.trust_remote_code=true``, a verb with ``--trust``. What it found can then be merged,
exported and scored without asking again, as long as not a byte of that code has changed. A stranger's run folder or
recipe cannot ask in the user's name: what it says is not looked at, only the code's own hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from evomerge.errors import PoolError
from evomerge.models.checkpoints.location import resolve
from evomerge.recipes.slices import ModelRef
from evomerge.utils.files import write_text_atomic

_LARGEST = 2**24  # bytes of a file of code or of a configuration


def remember(folders: Iterable[Path]) -> None:
    """Note that the code of these model folders was asked for; nothing where that cannot be written down."""
    for folder in folders:
        digest = _digest(folder)
        if digest:
            try:
                place = _notes()
                place.mkdir(parents=True, exist_ok=True)
                write_text_atomic(place / digest, f"{folder}\n")
            except (OSError, RuntimeError):
                return


def asked_before(models: Iterable[ModelRef | str], root: str | Path | None = None) -> bool:
    """Whether every one of these models that brings code along brings code that was asked for before."""
    found = False
    for model in models:
        location, revision = (model.location, model.revision) if isinstance(model, ModelRef) else (model, None)
        try:
            folder, _ = resolve(location, root, revision)
            digest = _digest(folder)
            if digest is None:
                continue
            if not digest or not (_notes() / digest).is_file():
                return False
        except (PoolError, OSError, RuntimeError):
            return False
        found = True
    return found


def _digest(folder: Path) -> str | None:
    """A hash of all code in a folder and of what its files name; ``None`` without any, empty for another's code."""
    named = []
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file() or file.stat().st_size > _LARGEST:
            continue
        try:
            content = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict) and content.get("auto_map"):
            named.append(json.dumps([name, content["auto_map"]], sort_keys=True))
    if not named:
        return None
    if any("--" in entry for entry in named):  # of another repository, whose code does not lie here
        return ""
    digest = hashlib.sha256("\n".join(named).encode())
    for file in sorted(folder.rglob("*.py")):
        if file.stat().st_size > _LARGEST:
            return ""
        digest.update(f"\n{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _notes() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "evomerge" / "trusted_code"
