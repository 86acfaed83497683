"""The modules of sentence-transformers that follow a model: which files they are, and whether they can be kept.

``modules.json`` lists a transformer, which is merged, and what comes after it, each in a folder of its own: pooling and
normalisation have settings only; a dense layer has weights, see `models.dense`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from evomerge.errors import PoolError
from evomerge.models.checkpoints.side_files import SENTENCE, check_inside, matching
from evomerge.utils.files import read_bounded

MODULES = "modules.json"
DENSE = "Dense"
_WITHOUT_WEIGHTS = ("Transformer", "Pooling", "Normalize", "Dropout", "MultiVectorMask")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_LARGEST_LIST = 2**20
_PIECE = 2**24
_DO = "remove the module from modules.json of all models and add it to the merged one, or merge models that share it"


def sentence_files(folder: Path) -> dict[Path, Path]:
    """The files of sentence-transformers in a model's folder, by their place in it; empty where it has none.

    Raises:
        PoolError: ``modules.json`` is malformed, or names what lies outside.
    """
    if not (folder / MODULES).is_file():
        return {}
    found = {Path(file.name): file for file in matching(folder, SENTENCE) if file.is_file()}
    for place in modules_of(folder):
        if (folder / place).is_dir():
            found |= {place / file.name: file for file in sorted((folder / place).iterdir()) if file.is_file()}
    for file in found.values():
        check_inside(file, folder)
    return found


def check_sentence_modules(folders: Mapping[str, Path], but_dense: bool = False) -> None:
    """Refuse models of sentence-transformers with modules whose weights are not the same in all.

    Args:
        folders: of the models by name; those without ``modules.json`` are not compared.
        but_dense: whether dense layers may differ, or be missing.

    Raises:
        PoolError: names the module.
    """
    holders = {name: folder for name, folder in folders.items() if (folder / MODULES).is_file()}
    if not holders:
        return
    first = next(iter(holders))
    kinds = {name: modules_of(folder) for name, folder in holders.items()}
    for name in holders:
        for place, kind in kinds[name].items():
            weights = matching(holders[name] / place, _WEIGHTS) if (holders[name] / place).is_dir() else []
            what = f"module {place} ({kind}) of sentence-transformers in model {name!r}"
            if kind not in _WITHOUT_WEIGHTS and kind == DENSE and not weights:
                raise PoolError(f"{what} has no weights", "safetensors beside its config.json", "download them")
            for file in weights:
                if file.suffix != ".safetensors":
                    raise PoolError(
                        f"{what} has pickled weights ({file.name})",
                        "pickled weights can run code when read, so they are not copied",
                        "save the model again with sentence-transformers",
                    )
                other = holders[first] / place / file.name
                if not (but_dense and kind == DENSE) and not _same(file, other):
                    raise PoolError(
                        f"{what} has weights that model {first!r} does not have",
                        "such modules are the same in all models, unless a recipe says what becomes of dense layers",
                        _DO,
                    )
        free = (*_WITHOUT_WEIGHTS, DENSE) if but_dense else _WITHOUT_WEIGHTS
        if any(place not in kinds[name] for place, kind in kinds[first].items() if kind not in free):
            raise PoolError(f"model {name!r} lacks a module of sentence-transformers that {first!r} has", "", _DO)


def modules_of(folder: Path) -> dict[Path, str]:
    """The folders of the modules after the transformer, with the last part of their class's name."""
    path = folder / MODULES
    try:
        listed = json.loads(read_bounded(path, _LARGEST_LIST).decode("utf-8"))
        found = {Path(entry["path"]): str(entry["type"]).rpartition(".")[2] for entry in listed if entry["path"]}
    except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
        raise PoolError(f"{path} is not a list of modules ({type(error).__name__})", "", "download it again") from error
    for place in found:
        if place.is_absolute() or ".." in place.parts or len(str(place)) > 200 or "\0" in str(place):
            raise PoolError(f"{path} names a module outside the model's folder ({str(place)[:200]!r})")
        check_inside(folder / place, folder)
    return found


def _same(file: Path, other: Path) -> bool:
    """Whether two files are the same, byte for byte."""
    if not other.is_file() or file.stat().st_size != other.stat().st_size:
        return False
    with file.open("rb") as one, other.open("rb") as two:
        while piece := one.read(_PIECE):
            if piece != two.read(len(piece)):
                return False
    return True
