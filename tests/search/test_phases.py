import pytest

from evomerge.errors import ConfigError
from evomerge.search.phases import split_budget


@pytest.mark.parametrize(
    ("total", "wanted", "expected"),
    [
        (600, {"merge": None, "path": None}, {"merge": 300, "path": 300}),
        (601, {"merge": None, "path": None}, {"merge": 301, "path": 300}),
        (600, {"merge": 200, "path": None}, {"merge": 200, "path": 400}),
        (600, {"merge": 0.25, "path": None}, {"merge": 150, "path": 450}),
        (10, {"a": 0.33, "b": 0.67}, {"a": 3, "b": 7}),
        (7, {"only": 7}, {"only": 7}),
    ],
)
def test_splits_the_budget(total: int, wanted: dict, expected: dict) -> None:
    assert split_budget(total, wanted) == expected


@pytest.mark.parametrize(
    ("total", "wanted", "message"),
    [
        (600, {"merge": 200, "path": 300}, "ask for 200 \\+ 300 evaluations, and search.evaluations is 600"),
        (600, {"merge": 400, "path": 300}, "they must add up"),
        (600, {"merge": 600, "path": None}, "at least one for each"),
        (600, {"merge": 0, "path": None}, "phases.merge.evaluations is 0"),
        (600, {"merge": 1.5, "path": None}, "a share between 0 and 1"),
        (600, {"merge": "half", "path": None}, "a share between 0 and 1"),
        (600, {"merge": 0.2, "path": 0.3}, "they must add up"),
    ],
)
def test_refuses_budgets_that_do_not_add_up(total: int, wanted: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_budget(total, wanted)
