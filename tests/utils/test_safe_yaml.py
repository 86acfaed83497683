from __future__ import annotations

from typing import Any

import pytest

from evomerge.errors import RecipeError
from evomerge.utils import safe_yaml


def test_plain_values() -> None:
    text = "a: [1, 0.5, 1e-3, true, null, 'x', y]\nb: {c: -2}\n"
    assert safe_yaml.parse(text) == {"a": [1, 0.5, 0.001, True, None, "x", "y"], "b": {"c": -2}}
    assert safe_yaml.parse("") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "'a' on line 2 is given twice"),
        ("- {b: {a: 1, 'a': 2}}", "'a' on line 1 is given twice"),
        ("a: &x 1\nb: *x", r"line 2 uses the alias \*x"),
        ("a: !!int 1", "line 1 uses the tag tag:yaml.org,2002:int"),
        ("? [1]\n: 2", "not valid YAML"),
        ("[" * 17 + "]" * 17, "nested 17 deep"),
        ("a: 'b", "not valid YAML"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        safe_yaml.parse(text)


def test_sixteen_levels_are_allowed() -> None:
    assert str(safe_yaml.parse("[" * 16 + "]" * 16)) == "[" * 16 + "]" * 16


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (safe_yaml.items, [1], []),
        (safe_yaml.items, ["a"], "a"),
        (safe_yaml.text, "a", ""),
        (safe_yaml.text, "1", 1),
        (safe_yaml.integer, 3, True),
        (safe_yaml.integer, -(2**62), 2**63),
        (safe_yaml.number, 0.5, float("inf")),
        (safe_yaml.number, 7, False),
    ],
)
def test_fields(read: Any, good: Any, bad: Any) -> None:
    assert read(good, "here") == good
    with pytest.raises(RecipeError, match=r"^here is "):
        read(bad, "here")


def test_mappings_have_the_keys_they_should() -> None:
    assert safe_yaml.mapping({"a": 1}, "here", ("a",), ("b",)) == {"a": 1}
    with pytest.raises(RecipeError, match=r"^here\.a is missing; here needs a$"):
        safe_yaml.mapping({"b": 1}, "here", ("a",), ("b",))
    with pytest.raises(RecipeError, match=r"^unknown key here\.bb; did you mean 'b'"):
        safe_yaml.mapping({"a": 1, "bb": 1}, "here", ("a",), ("b",))


def test_long_values_are_cut_in_messages() -> None:
    assert safe_yaml.shown("x" * 100) == "'" + "x" * 56 + "..."
