"""How mergekit files name models, and what evomerge calls them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from evomerge.errors import RecipeError
from evomerge.utils import safe_yaml


@dataclass(frozen=True)
class Reference:
    """A model: a folder or hub id, with a revision, and an adapter that is folded into it.

    Attributes:
        path, revision: of the model.
        adapter, adapter_revision: of the adapter, where there is one.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    def location(self, folder: Path | None = None) -> str:
        """What a pool finds it by; relative folders that exist below `folder` alone are looked for there."""
        own = _pinned(_placed(self.path, folder), self.revision)
        if self.adapter is None:
            return own
        return f"{own}+{_pinned(_placed(self.adapter, folder), self.adapter_revision)}"

    def __str__(self) -> str:
        return self.location()


def read_reference(content: Any, where: str) -> Reference:
    """A model as text (``path@revision+adapter``) or spelt out.

    Raises:
        RecipeError: it is neither; names the key.
    """
    if isinstance(content, str):
        chunks = safe_yaml.text(content, where).split("+")
        if len(chunks) > 2 or not all(chunks):
            raise RecipeError(f"{where} is {content!r}", "one model, or a model and an adapter: path+adapter")
        path, revision = _at(chunks[0], where)
        adapter, adapter_revision = _at(chunks[1], where) if len(chunks) == 2 else (None, None)
        return Reference(path, revision, adapter, adapter_revision)
    fields = safe_yaml.mapping(content, where, ("model",), ("lora", "override_architecture"))
    if fields.get("override_architecture") is not None:
        raise RecipeError(
            f"{where}.override_architecture is given", "evomerge reads the architecture from config.json", "remove it"
        )
    path, revision = _path(fields["model"], f"{where}.model")
    lora = fields.get("lora")
    adapter, adapter_revision = (None, None) if lora is None else _path(lora, f"{where}.lora")
    return Reference(path, revision, adapter, adapter_revision)


def name_models(references: Iterable[Reference], taken: Collection[str] = ()) -> dict[Reference, str]:
    """Names for models from the last part of their paths, numbered where they would be alike or are `taken`."""
    names: dict[Reference, str] = {}
    for reference in references:
        parts = [PurePath(path).name for path in (reference.path, reference.adapter) if path]
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(parts)).strip("-.") or "model"
        name, number = plain, 1
        while name in taken or name in names.values():
            number += 1
            name = f"{plain}-{number}"
        names[reference] = name
    return names


def _path(content: Any, where: str) -> tuple[str, str | None]:
    if isinstance(content, str):
        return _at(safe_yaml.text(content, where), where)
    fields = safe_yaml.mapping(content, where, ("path",), ("revision",))
    return safe_yaml.text(fields["path"], f"{where}.path"), safe_yaml.optional(
        fields, "revision", where, safe_yaml.text
    )


def _at(text: str, where: str) -> tuple[str, str | None]:
    path, *revisions = text.split("@")
    if len(revisions) > 1 or not path or not all(revisions):
        raise RecipeError(f"{where} is {text!r}", "path or path@revision", "spell a path with an @ out: {path: ...}")
    return path, revisions[0] if revisions else None


def _pinned(path: str, revision: str | None) -> str:
    return f"{path}@{revision}" if revision else path


def _placed(path: str, folder: Path | None) -> str:
    """As mergekit looks: from the current directory; then, beyond mergekit, from the file's own folder."""
    if folder is not None and not Path(path).expanduser().is_dir() and (folder / path).is_dir():
        return str((folder / path).resolve())
    return path
