"""Where a model lies: a local folder, or a hub id pinned to the commit it resolves to."""

from __future__ import annotations

import re
from pathlib import Path

from evomerge.errors import PoolError, nearest
from evomerge.recipe import ModelRef

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")

# Weights other than safetensors are never fetched; some repositories hold a second copy of the weights
# under other names, which transformers does not load either.
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken", "README.md"]
_UNWANTED = ["consolidated*", "original/*", "onnx/*", "*/*.safetensors"]


def resolve(location: str, root: str | Path | None = None, revision: str | None = None) -> tuple[Path, ModelRef]:
    """Find the folder of a model.

    Args:
        location: a local folder (absolute, or relative to `root` or to the current directory), or a hub id
            ``org/name`` or ``org/name@revision``. A folder that exists is always taken before the hub.
        root: folder that relative locations are looked up in first.
        revision: branch, tag or commit of a hub id; overrides the one in `location`.

    Returns:
        The folder with the files, and a reference: the absolute path for a local folder (without a
        fingerprint), the hub id with the resolved commit for a hub model.

    Raises:
        PoolError: nothing is found there; the hub cannot be reached or does not know the id or revision.
    """
    if not location:
        raise PoolError("a model's location is empty", "a local folder, or a hub id such as org/name@revision")
    tried = _local_candidates(location, root)
    for folder in tried:
        if folder.is_dir():
            found = folder.resolve()
            return found, ModelRef(str(found))
        if folder.is_file():
            raise PoolError(
                f"{location} is a file", "a model is a folder with config.json and safetensors", "name its folder"
            )
    match = _HUB_ID.fullmatch(location)
    if match is None or location.startswith((".", "~")):
        raise PoolError(
            f"no folder {location} (looked at {', '.join(str(f) for f in tried)})",
            _siblings(tried[0]),
            "give a folder, or a hub id such as org/name@revision",
        )
    return _from_hub(match["repo"], revision or match["revision"], tried)


def _local_candidates(location: str, root: str | Path | None) -> list[Path]:
    """The folders that `location` may mean, in order."""
    path = Path(location).expanduser()
    if path.is_absolute():
        return [path]
    roots = [Path(root).expanduser()] if root is not None else []
    candidates = [base / path for base in [*roots, Path.cwd()]]
    return list(dict.fromkeys(candidates))


def _siblings(folder: Path) -> str:
    """Say which folders lie beside a missing one."""
    parent = folder.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return f"in {parent}: {nearest(folder.name, names)}"


def _from_hub(repo: str, revision: str | None, tried: list[Path]) -> tuple[Path, ModelRef]:
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
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except HFValidationError as error:
        raise PoolError(local, "which is not a valid one", _first_line(error)) from error
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
        raise PoolError(local, "the download failed", _first_line(error)) from error
    # The cache keeps every snapshot under the commit it belongs to.
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    return folder, ModelRef(repo, revision=commit)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
