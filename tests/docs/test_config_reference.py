"""docs/config.md is what `scripts/config_reference.py` makes of the declarations."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

import pytest

from evomerge import conf_dir
from evomerge.config.construct import locate
from scripts.config_reference import (
    GROUPS,
    PAGE,
    comment_on,
    page,
    parent_of,
    read_option,
    section,
    target_of,
    type_text,
)

OPTIONS = sorted(path for group in GROUPS for path in (conf_dir() / group).glob("*.yaml") if target_of(path))


def test_the_page_is_current() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "run python scripts/config_reference.py"


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_argument_of_a_class_is_a_key_on_the_page(path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    root = path
    while (parent := parent_of(root)) is not None:
        root = path.with_stem(parent)
    built: Any = locate(str(target_of(path)), path.stem)
    parameters = inspect.signature(built.__init__).parameters.values()
    wanted = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"seed", "winner"}
    listed = {line.split("`")[1] for line in _part(text, root).splitlines() if line.startswith("| `")}
    assert wanted <= listed


def _part(text: str, path: Path) -> str:
    heading = f"\n### {path.parent.name}={path.stem}\n"
    assert heading in text
    return text.partition(heading)[2].partition("\n##")[0].partition("\n### ")[0]


def test_comments_are_read_with_their_continuations(tmp_path: Path) -> None:
    file = tmp_path / "search_space" / "some.yaml"
    file.parent.mkdir()
    file.write_text("""# @package _global_
# What it is,
# in two lines.
_target_: builtins.dict
one: 1            # the first | of all,
                  # and more
# Before the second.
two: [a, "#b"]
three: {x: 1}
""")
    description, keys = read_option(file)
    assert description == "What it is, in two lines."
    assert [(key.name, key.value, key.meaning) for key in keys] == [
        ("one", 1, "the first | of all, and more"),
        ("two", ["a", "#b"], "Before the second."),
        ("three", {"x": 1}, ""),
    ]


def test_a_key_is_explained_by_its_parent() -> None:
    path = conf_dir() / "search_space" / "by_layer.yaml"
    assert comment_on("search_space", path, "mask_seed") == "of the random masks of methods that drop weights"


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int | None, "whole number or null"),
        (str | list[str] | None, "text or list of text or null"),
        (Literal["a", "b"], "`a` or `b`"),
        (dict[str, Any], "mapping"),
        (list[list[float] | None] | None, "list of list of number or null"),
    ],
)
def test_types_in_words(annotation: Any, text: str) -> None:
    assert type_text(annotation) == text


def test_docstrings_are_read() -> None:
    text = "One.\n\nArgs:\n    a, b: two ``words``\n        and more.\n    c: one.\n\nRaises:\n    E: never.\n"
    assert section(text, "Args") == {"a": "two `words` and more", "b": "two `words` and more", "c": "one"}
