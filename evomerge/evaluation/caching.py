"""How a worker's share of the layer cache is opened."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch

import evomerge.merge
from evomerge.errors import ConfigError
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.merge.cache.shared_cache import SharedCache, remove_if_unused
from evomerge.merge.execution.sources import free_memory
from evomerge.models.pool import Pool

_LOG = logging.getLogger(__name__)
_SHARED_MEMORY = Path("/dev/shm")


def open_shared(settings: CacheSettings, pool: Pool, device: str) -> SharedCache | None:
    """Open the shared cache, on disk where shared memory is too small; ``None`` where there is none.

    Raises:
        ConfigError: the folder cannot be used.
    """
    if settings.shared == "off":
        return None
    if any(not (ref.fingerprint or ref.revision) for _, ref in pool.info.refs):
        _LOG.warning("no shared cache: nothing pins the pool's models, so merged slices could be of others")
        return None
    content = f"{_code()}-{torch.device(device).type}"
    if settings.shared not in ("memory", "disk"):
        folder = Path(settings.shared).expanduser() / content
        try:
            folder.mkdir(parents=True, exist_ok=True)
            size = settings.shared_size or shutil.disk_usage(folder).free // 4
            return SharedCache(folder, size, temporary=False, keep_all=settings.keep_all)
        except OSError as error:
            raise ConfigError(
                f"evaluator.shared_cache is {settings.shared!r}, which cannot be written ({error.strerror})",
                "a folder that can",
                "name another, or set evaluator.shared_cache=off",
            ) from error
    model = pool.checkpoints[pool.info.config_from].nbytes
    places = [(_SHARED_MEMORY, 2)] if settings.shared == "memory" else []
    for root, part in (*places, (Path(tempfile.gettempdir()), 4)):
        sweep(root)
        try:
            size = settings.shared_size or shutil.disk_usage(root).free // part
            if root == _SHARED_MEMORY:
                size = min(size, free_memory(torch.device("cpu")) // 4)
            if size < model or size > shutil.disk_usage(root).free:
                raise OSError(f"{size / 1e6:.0f} MB of room, a model has {model / 1e6:.0f} MB")
            return SharedCache(root / f"{folder_prefix()}{settings.run}-{content}", size, keep_all=settings.keep_all)
        except OSError as error:
            then = "; trying a disk" if root == _SHARED_MEMORY else ""
            _LOG.warning("no shared cache in %s (%s)%s", root, error, then)
    return None


def sweep(root: Path = _SHARED_MEMORY) -> None:
    """Remove the folders of runs that nobody works on any more: their workers may have been killed."""
    for folder in root.glob(f"{folder_prefix()}*"):
        remove_if_unused(folder)


def folder_prefix() -> str:
    """What the names of temporary folders of this user begin with."""
    return f"evomerge-{os.getuid()}-"


def _code() -> str:
    """What the bits of a merge depend on besides its content key: the code that computes it."""
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted(Path(evomerge.merge.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
