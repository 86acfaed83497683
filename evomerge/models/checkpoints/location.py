"""Where a model lies: a local folder, or a hub id pinned to the commit it resolves to; with an adapter or without."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from evomerge.errors import PoolError, nearest, reason_of
from evomerge.recipes.slices import ModelRef

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")

# Weights other than safetensors are never fetched; some repositories hold a second copy of the weights
# under other names, which transformers does not load either. Folders that begin with a digit hold the modules of
# sentence-transformers.
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken", "README.md"]
_UNWANTED = ["consolidated*", "original/*", "onnx/*", "[!0-9]*/*.safetensors"]


Files = tuple[list[str], list[str]]
"""Patterns of what is fetched from a hub, and of what is not."""

_SHOWN = 80  # characters of a location that is none


@dataclass(frozen=True)
class Located:
    """A source model's files.

    Attributes:
        folder: the model's.
        adapter: the folder of the adapter that is folded into it, or ``None``.
        ref: where they come from, pinned where a hub commit pins them.
    """

    folder: Path
    adapter: Path | None
    ref: ModelRef


def locate(source: str | ModelRef, root: str | Path | None = None) -> Located:
    """Find the folder of a model and, where `source` names one, that of its adapter.

    Args:
        source: ``model`` or ``model+adapter``, each a local folder or a hub id as `resolve` takes them; or a
            reference, whose parts need not be told apart. A folder with a ``+`` in its name that exists is always
            taken before a model and an adapter.
        root: folder that relative locations are looked up in first.

    Raises:
        PoolError: a part is not found.
    """
    if isinstance(source, str):
        model, adapter = split_adapter(source, root)
        parts = ModelRef(model), None if adapter is None else ModelRef(adapter)
    elif source.adapter is None and source.revision is None:
        return locate(source.location, root)
    else:
        parts = source, source.adapter
    folder, ref = resolve(parts[0].location, root, parts[0].revision)
    if parts[1] is None:
        return Located(folder, None, ref)
    own, adapter_ref = resolve(parts[1].location, root, parts[1].revision, "an adapter's")
    return Located(folder, own, replace(ref, adapter=adapter_ref))


def local_file(location: str, root: str | Path | None, suffix: str) -> Path | None:
    """The file of that suffix which a location is, looked for where folders are; ``None`` where it is none.

    Raises:
        PoolError: it cannot be a location.
    """
    if not location.endswith(suffix):
        return None
    return next((file.resolve() for file in _local_candidates(location, root) if file.is_file()), None)


def check_place(source: str | ModelRef, root: str | Path | None = None, *, files: bool = False) -> None:
    """Raise the `PoolError` of `locate` for what is no folder and no hub id; no hub is asked.

    With `files`, single ``.safetensors`` files are models and adapters too.
    """
    if isinstance(source, ModelRef):
        parts = [source.location, *([source.adapter.location] if source.adapter is not None else [])]
    else:
        parts = [part for part in split_adapter(source, root) if part is not None]
    for location in parts:
        if not files or local_file(location, root, ".safetensors") is None:
            _folder_or_hub(location, root, "a model's")


def split_adapter(location: str, root: str | Path | None) -> tuple[str, str | None]:
    """A model and its adapter, at that ``+`` of `location` which leaves the most likely two."""

    def likely(place: str) -> int:
        local = _local_candidates(place, root)
        if any(own.is_dir() or (own.suffix == ".safetensors" and own.is_file()) for own in local):
            return 2
        return int(_HUB_ID.fullmatch(place) is not None and not place.startswith("."))

    cuts = [at for at, char in enumerate(location) if char == "+"]
    if not cuts or likely(location) == 2:
        return location, None
    pairs = [(location[:at], location[at + 1 :]) for at in cuts]
    return max(pairs, key=lambda pair: (min(map(likely, pair)), sum(map(likely, pair))))


def resolve(
    location: str,
    root: str | Path | None = None,
    revision: str | None = None,
    whose: str = "a model's",
    wanted: Files | None = None,
) -> tuple[Path, ModelRef]:
    """Find the folder of a model or of an adapter.

    Args:
        location: a local folder (absolute, or relative to `root` or to the current directory), or a hub id
            ``org/name`` or ``org/name@revision``. A folder that exists is always taken before the hub.
        root: folder that relative locations are looked up in first.
        revision: branch, tag or commit of a hub id; overrides the one in `location`.
        whose: what is looked for, for messages.
        wanted: patterns of a hub id's files that are fetched, and of those that are not; a model's by default.

    Returns:
        The folder with the files, and a reference: the absolute path for a local folder (without a
        fingerprint), the hub id with the resolved commit for a hub model.

    Raises:
        PoolError: nothing is found there; the hub cannot be reached or does not know the id or revision.
    """
    found = _folder_or_hub(location, root, whose)
    if isinstance(found, Path):
        return found, ModelRef(str(found))
    tried = _local_candidates(location, root)
    return _from_hub(found["repo"], revision or found["revision"], tried, wanted or (_WANTED, _UNWANTED))


def _folder_or_hub(location: str, root: str | Path | None, whose: str) -> Path | re.Match[str]:
    """The folder that `location` is, or the parts of the hub id that it may be; `PoolError` where it is neither."""
    if not location:
        raise PoolError(f"{whose} location is empty", "a local folder, or a hub id such as org/name@revision")
    tried = _local_candidates(location, root)
    for folder in tried:
        if folder.is_dir():
            return folder.resolve()
        if folder.is_file() and folder.suffix == ".gguf" and whose == "a model's":
            return folder.resolve()
        if folder.is_file():
            raise PoolError(
                f"{location} is a file",
                "a model is a folder with config.json and safetensors, or a GGUF file",
                "name its folder",
            )
    match = _HUB_ID.fullmatch(location)
    if match is None or location.startswith((".", "~")):
        raise PoolError(
            f"no folder {location} (looked at {', '.join(str(f) for f in tried)})",
            siblings(tried[0]),
            "give a folder, or a hub id such as org/name@revision",
        )
    return match


def _local_candidates(location: str, root: str | Path | None) -> list[Path]:
    """The folders that `location` may mean, in order."""
    try:
        if any(ord(char) < 32 for char in location):
            raise ValueError("it has control characters")
        path = Path(location).expanduser()
        path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, the home of nobody
        reason = getattr(error, "strerror", None) or reason_of(error)
        shown = location if len(location) <= _SHOWN else f"{location[:_SHOWN]}..."
        raise PoolError(
            f"{shown!r} cannot be a model's location ({reason})",
            "a local folder, or a hub id such as org/name@revision",
        ) from error
    if path.is_absolute():
        return [path]
    roots = [Path(root).expanduser()] if root is not None else []
    candidates = [base / path for base in [*roots, Path.cwd()]]
    return list(dict.fromkeys(candidates))


def siblings(folder: Path) -> str:
    """Say which folders lie beside a missing one."""
    parent = folder.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return f"in {parent}: {nearest(folder.name, names)}"


def _from_hub(repo: str, revision: str | None, tried: list[Path], wanted: Files) -> tuple[Path, ModelRef]:
    """Fetch (or find in the cache) a hub model's files, without weights in other formats."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"{repo}@{revision}" if revision else repo
    local = f"there is no folder {tried[0]}, so {name} was taken as a hub id"
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted[0], ignore_patterns=wanted[1]))
    except HFValidationError as error:
        raise PoolError(local, "which is not a valid one", reason_of(error)) from error
    except GatedRepoError as error:
        raise PoolError(
            local, "access to it is gated", "accept its terms on the hub and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise PoolError(
            local, f"the hub has no revision {revision!r} of it", "name a branch, a tag or a commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise PoolError(local, "the hub has no such model, or it is private", "check the spelling or log in") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise PoolError(
            local,
            "it is not in the local cache and the hub could not be reached",
            "check the folder's name, or go online (unset HF_HUB_OFFLINE) to download it",
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise PoolError(local, "the download failed", reason_of(error)) from error
    # The cache keeps every snapshot under the commit it belongs to.
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    return folder, ModelRef(repo, revision=commit)
