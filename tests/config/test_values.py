"""Numbers are numbers: of every key, wherever its value comes from."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from evomerge.config.compose import compose_config
from evomerge.config.values import converted
from evomerge.errors import ConfigError


@pytest.mark.parametrize(
    ("annotation", "value", "allowed"),
    [
        (int, True, "a whole number"),
        (int, 3.7, "a whole number"),
        (int, 3.0, "a whole number"),
        (int, "3", "a whole number"),
        (int | None, False, "a whole number"),
        (float, True, "a number"),
        (float, "0.5", "a number"),
        (float | Literal["auto"] | None, True, "a number or 'auto'"),
        (int | str, True, "a whole number or a text"),
        (bool, 1, "true or false"),
        (bool, "true", "true or false"),
        (str, 3, "a text"),
        (dict[str, float], {"a": True}, "a number (at a)"),
        (str | list[str] | dict[str, float] | None, {"clip": 1, "fid": "x"}, "a number (at fid)"),
        (str | list[str] | dict[str, float] | None, ["clip", 3], "a text (at 1)"),
        (list[int], [1, "2"], "a whole number (at 1)"),
        (Sequence[float], [1.0, True], "a number (at 1)"),
        (tuple[int, int], [1, 2.5], "a whole number (at 1)"),
    ],
)
def test_what_is_refused(annotation: Any, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as error:
        converted(value, annotation, "node.key")
    assert error.value.allowed == f"it should be {allowed}"
    assert error.value.given.startswith("node.key is ")


@pytest.mark.parametrize(
    ("annotation", "value", "wanted"),
    [
        (float, 3, 3.0),
        (int | None, None, None),
        (float | Literal["auto"], "auto", "auto"),
        (tuple[int, float], [1, 2], (1, 2.0)),
        (Mapping[str, Any], {"a": "3"}, {"a": "3"}),
        (list[str | dict[str, Any]], ["a", {"b": 1}], ["a", {"b": 1}]),
        (bool | str, "name", "name"),
    ],
)
def test_what_is_taken(annotation: Any, value: Any, wanted: Any) -> None:
    found = converted(value, annotation, "node.key")
    assert (found, type(found)) == (wanted, type(wanted))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.evaluations=true", "search.evaluations is true; it should be a whole number"),
        ("search.evaluations='3'", "search.evaluations is '3'; it should be a whole number"),
        ("search.seed=1.5", "search.seed is 1.5; it should be a whole number"),
        ("search.baselines=3", "search.baselines is 3; it should be true or false"),
        ("search.checkpoint.every='60'", "search.checkpoint.every is '60'; it should be a number"),
        ("search.checkpoint.keep=true", "search.checkpoint.keep is true; it should be a whole number"),
        ("search.weights={a: true}", "search.weights is {'a': True}; it should be a number (at a)"),
        ("pool.trust_remote_code=1", "pool.trust_remote_code is 1; it should be true or false"),
    ],
)
def test_keys_of_the_schema(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose_config([override])
    assert str(error.value) == says
