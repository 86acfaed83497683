"""What an installed package takes, read from its source: importing it takes seconds and starts things."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path


def parsed(package: str, *parts: str) -> ast.Module | None:
    """A file of an installed package; ``None`` where there is none, or none that can be read."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        try:
            return ast.parse(Path(folder, *parts).read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
    return None


def class_fields(package: str, parts: tuple[str, ...], name: str) -> Mapping[str, str]:
    """Annotated fields of a class and their annotations; none where the class is not found.

    Args:
        package: its name.
        parts: of the file's path in the package.
        name: of the class.
    """
    tree = parsed(package, *parts)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields = [(each.target, each.annotation) for each in node.body if isinstance(each, ast.AnnAssign)]
            return {target.id: ast.unparse(kind) for target, kind in fields if isinstance(target, ast.Name)}
    return {}
