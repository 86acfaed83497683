"""A repository of LoRA adapters: all that a folder holds, or that a pattern matches, in the order of their names."""

from __future__ import annotations

import glob
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, EvomergeWarning, PoolError, nearest
from evomerge.models.checkpoints.adapter import Adapter

KEY = "pool.adapters"

_CONFIG = "adapter_config.json"
_LISTED = 3


def repository_models(given: Any, base: str, root: str | Path | None = None) -> dict[str, str]:
    """The adapters of a repository by name, sorted: locations ``BASE+FOLDER``.

    A folder counts as an adapter when it has an ``adapter_config.json``. One that cannot be folded into a base (DoRA
    and the like, files that are missing or broken) is warned of and left out.

    Args:
        given: a folder, whose own folders are taken, or a pattern of adapters' folders as a shell has it (``*``, ``?``,
            ``[...]``, and ``**`` for any depth). An adapter is called after its folder, or, where two are called alike,
            after what tells their paths apart.
        base: the location of the model that they are folded into.
        root: folder that a relative one is looked up in first, before the current one.

    Raises:
        ConfigError: it is no text.
        PoolError: there is no such folder, nothing matches, or no adapter is left.

    >>> names_of([Path("a/polite/final"), Path("a/brief/final")])
    ['polite-final', 'brief-final']
    """
    if not isinstance(given, str) or not given:
        raise ConfigError(f"{KEY} is {given!r}", "a folder of adapters, or a pattern such as 'adapters/*-v2'")
    folders = [folder for folder in _matched(given, root) if (folder / _CONFIG).is_file()]
    kept: list[Path] = []
    bad: list[str] = []
    for folder in folders:
        try:
            _ = Adapter(folder).changes
        except PoolError as error:
            bad.append(f"{folder.name} ({error.given.removeprefix(f'{folder}{os.sep}').removeprefix(f'{folder} ')})")
        else:
            kept.append(folder)
    cut = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    left_out = f"{'; '.join(bad[:_LISTED])}{cut}"
    if not kept:
        raise PoolError(
            f"{KEY}: {given} holds no adapter{f' that can be folded: {left_out}' if bad else ''}",
            f"folders with {_CONFIG} and adapter_model.safetensors each, as PEFT saves LoRA adapters",
            "name the folder that holds the adapters' folders, or a pattern that matches these",
        )
    if bad:
        warnings.warn(f"{KEY}: adapters are left out: {left_out}", EvomergeWarning, stacklevel=2)
    return dict(sorted((name, f"{base}+{folder}") for name, folder in zip(names_of(kept), kept, strict=True)))


def names_of(folders: Sequence[Path]) -> list[str]:
    """What adapters are called: their folders' names, or where these repeat, their paths below what all have in common.

    Folders are told apart in the end by a number.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        above = Path(os.path.commonpath(folders))
        names = ["-".join(folder.relative_to(above).parts) for folder in folders]
    seen: Counter[str] = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        names[place] = f"{name}-{seen[name]}" if seen[name] > 1 else name
    return names


def _matched(given: str, root: str | Path | None) -> list[Path]:
    """The folders that may be adapters, absolute, sorted."""
    path = Path(given).expanduser()
    roots = [Path(root).expanduser()] if root is not None and not path.is_absolute() else []
    tried = [base / path for base in [*roots, Path.cwd()]]
    for place in tried:
        if place.is_dir():
            if (place / _CONFIG).is_file():
                raise PoolError(
                    f"{KEY}: {given} is an adapter itself",
                    "the folder that holds the adapters' folders",
                    "name the folder above, or the adapter in pool.models as BASE+ADAPTER",
                )
            return sorted(entry.resolve() for entry in place.iterdir() if entry.is_dir())
    for place in tried:
        if glob.has_magic(given) and (found := sorted(glob.glob(str(place), recursive=True))):
            return [Path(entry).resolve() for entry in found if Path(entry).is_dir()]
    places = ", ".join(dict.fromkeys(map(str, tried)))
    if glob.has_magic(given):
        raise PoolError(f"{KEY}: nothing matches {given} (looked at {places})", "a pattern of adapters' folders")
    parent = tried[0].parent
    beside = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    raise PoolError(
        f"{KEY}: there is no folder {given} (looked at {places})",
        nearest(path.name, beside) if beside else "a folder of adapters",
    )
