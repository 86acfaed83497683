"""Landscapes as files: arrays and JSON in one archive, by the hash of their content. Nothing in it is executed."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, EvomergeError
from evomerge.genomes.genome import Gene
from evomerge.landscape.forest import Forest
from evomerge.landscape.items import HARDEST, ItemModel
from evomerge.landscape.landscape import Fit, Landscape
from evomerge.landscape.surface import Surface
from evomerge.objectives import MetricShare, Objective
from evomerge.utils.files import read_bounded, write_bytes_atomic

FORMAT = 1
_MOST = 2**28  # bytes of the file
_MOST_UNPACKED = 2**30
_HEADER, _DIGEST = "header", "sha256"
_WHOLE = ("roots", "feature", "left", "right")


def write_landscape(landscape: Landscape, path: Path | None = None) -> Path:
    """Write a landscape to a file, by default ``landscape-HASH.npz`` in the working folder; returns the file's path.

    The same landscape is the same bytes.
    """
    arrays = _arrays(landscape)
    digest = fingerprint_of(arrays)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, **{_DIGEST: np.frombuffer(bytes.fromhex(digest), np.uint8)})  # type: ignore[arg-type]
    path = path or Path(f"landscape-{digest[:12]}.npz")
    write_bytes_atomic(path, buffer.getvalue())
    return path


def read_landscape(path: str | Path) -> Landscape:
    """Read the file of a landscape. Arrays of objects, which would be executed code, are refused.

    Raises:
        ConfigError: it is missing, no landscape, damaged, or of a later version.
    """
    allowed = "a file that `evomerge export --format landscape RUN` wrote"
    try:
        data = read_bounded(Path(path), _MOST)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", allowed) from error
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > _MOST_UNPACKED:
                raise ValueError(f"it unpacks to more than {_MOST_UNPACKED:,} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        digest = arrays.pop(_DIGEST).tobytes().hex()
        if fingerprint_of(arrays) != digest:
            raise ValueError("its content is not what its hash says")
        return replace(_landscape(arrays), fingerprint=f"sha256:{digest}")
    except (EvomergeError, ValueError, KeyError, TypeError, AttributeError, OSError, zipfile.BadZipFile) as error:
        reason = str(error) if isinstance(error, EvomergeError | ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} is no landscape: {' '.join(reason.split())[:300]}", allowed) from error


def fingerprint_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of arrays, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        own = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {own.dtype.str} {own.shape}\n".encode())
        digest.update(own.tobytes())
    return digest.hexdigest()


def _arrays(landscape: Landscape) -> dict[str, NDArray[Any]]:
    header = {
        "evomerge_landscape": FORMAT,
        "genes": [{k: v for k, v in asdict(gene).items() if v not in (None, ())} for gene in landscape.genes],
        "objectives": [[objective.name, objective.direction] for objective in landscape.objectives],
        "shares": [share.to_json() for share in landscape.shares],
        "targets": list(landscape.targets),
        "items": list(landscape.items),
        "fit": {target: asdict(fit) for target, fit in landscape.fit.items()},
        "source": dict(landscape.source),
    }
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    arrays: dict[str, NDArray[Any]] = {_HEADER: np.frombuffer(text.encode(), np.uint8)}
    for part in (landscape.surface, landscape.forest):
        name = type(part).__name__.lower()
        arrays |= {f"{name}.{own.name}": getattr(part, own.name) for own in fields(part)}
    for number, own in enumerate(landscape.items.values()):
        arrays[f"items.{number}.offsets"] = own.offsets
        if own.deviations is not None:
            arrays[f"items.{number}.deviations"] = own.deviations
    return arrays


def _landscape(arrays: Mapping[str, NDArray[Any]]) -> Landscape:
    header = json.loads(arrays[_HEADER].tobytes())
    if header["evomerge_landscape"] != FORMAT:
        raise ValueError(f"it has format {header['evomerge_landscape']!r}, this version reads {FORMAT}")
    genes = tuple(Gene(**{**entry, "choices": tuple(entry.get("choices", ()))}) for entry in header["genes"])
    shares = [MetricShare.from_json(entry) for entry in header["shares"]]
    targets = tuple(str(target) for target in header["targets"])
    surface = Surface(**{own.name: _numbers(arrays, f"surface.{own.name}") for own in fields(Surface)})
    forest = Forest(**{own.name: _numbers(arrays, f"forest.{own.name}") for own in fields(Forest)})
    items = {
        str(target): _items(arrays, number) for number, target in enumerate(header["items"]) if str(target) in targets
    }
    fit = {str(target): Fit(**{k: float(v) for k, v in own.items()}) for target, own in header["fit"].items()}
    objectives = tuple(Objective(name, direction) for name, direction in header["objectives"])
    known = tuple(share for share in shares if share is not None)
    found = Landscape(genes, objectives, known, targets, surface, forest, items, fit, header["source"])
    surface.check(found.features.count, len(targets))
    forest.check(found.features.count, len(targets))
    sizes: dict[str, set[int]] = {}
    for target, own in items.items():
        sizes.setdefault(target.rpartition("/")[0], set()).add(len(own.offsets))
    ways = {objective.direction for objective in objectives}
    fits = all(len(counts) == 1 for counts in sizes.values()) and ways <= {"maximize", "minimize"}
    if not (fits and genes and objectives and targets):
        raise ValueError("its items, genes or objectives do not fit together")
    return found


def _numbers(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    wanted = np.int32 if name.rpartition(".")[2] in _WHOLE else np.float64
    if arrays[name].dtype != wanted:
        raise ValueError(f"{name} is {arrays[name].dtype}, not {np.dtype(wanted)}")
    return arrays[name]


def _items(arrays: Mapping[str, NDArray[Any]], number: int) -> ItemModel:
    offsets, deviations = arrays[f"items.{number}.offsets"], arrays.get(f"items.{number}.deviations")
    for own in (offsets, deviations):
        if own is not None and (own.dtype != np.float64 or own.shape != (offsets.size,) or not own.size):
            raise ValueError(f"the items of target {number} are {own.dtype} of shape {own.shape}")
        if own is not None and not np.isfinite(own).all():
            raise ValueError(f"the items of target {number} are not finite")
    if deviations is None and (np.abs(offsets) > HARDEST).any():
        raise ValueError(f"the difficulties of target {number} are beyond {HARDEST}")
    return ItemModel(offsets, deviations)
