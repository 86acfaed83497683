"""Whatever a file holds, its reader takes it or refuses it with an error of ours.

`scripts/fuzz.py` tries the same for as long as one likes; these are its first cases, and what hypothesis makes up.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.errors import EvomergeError, RecipeError
from evomerge.utils import safe_yaml
from scripts import fuzz
from scripts.fuzz_mutations import mutate_bytes, mutate_value
from scripts.fuzz_parsers import PARSERS, Parser

pytestmark = pytest.mark.slow

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["math", "embed"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def refuses_or_takes(parser: Parser, data: bytes, folder: Path) -> bool:
    """Whether it is taken; anything but an `EvomergeError` goes through."""
    try:
        parser.run(data, folder)
    except EvomergeError:
        return False
    return True


@pytest.mark.parametrize("name", PARSERS)
def test_the_fuzzer_s_first_cases(name: str) -> None:
    outcome = fuzz.fuzz(PARSERS[name], seed=0, cases=40)
    assert outcome.cases == 40
    assert not outcome.crashes
    assert 0 < outcome.accepted < 40  # some changes matter, others do not: both ways are tried


@pytest.mark.parametrize("name", PARSERS)
def test_bytes_of_any_kind(name: str, tmp_path: Path) -> None:
    @QUICK
    @given(st.binary(max_size=200))
    def check(data: bytes) -> None:
        refuses_or_takes(PARSERS[name], data, tmp_path)

    check()


@pytest.mark.parametrize(
    "name", ["recipe", "config", "mergekit", "evolve", "pool", "model", "index", "adapter", "task", "rating"]
)
def test_values_of_any_kind_under_the_keys_that_there_are(name: str, tmp_path: Path) -> None:
    parser = PARSERS[name]
    valid = parser.load(parser.seeds[0])

    @QUICK
    @given(st.dictionaries(st.sampled_from(sorted(valid)), VALUES, min_size=1, max_size=3), st.booleans())
    def check(changes: dict[str, Any], alone: bool) -> None:
        try:
            data = parser.dump(changes if alone else {**valid, **changes})
        except (ValueError, UnicodeError):
            return
        refuses_or_takes(parser, data, tmp_path)

    check()


@given(VALUES)
@settings(max_examples=50, deadline=None)
def test_plain_values_are_read_as_yaml_reads_them(value: Any) -> None:
    text = yaml.safe_dump(value, allow_unicode=False)
    try:
        found = safe_yaml.parse(text)
    except RecipeError as error:
        assert "nested" in str(error) or "not valid YAML" in str(error)  # noqa: PT017 - both ways are right
        return
    assert repr(found) == repr(yaml.safe_load(text))


def test_a_crash_is_found_and_told_with_its_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def careless(data: bytes, folder: Path) -> None:
        json.loads(data)

    parser = Parser("careless", (b'{"a": 1}',), careless, json.loads, lambda value: json.dumps(value).encode())
    outcome = fuzz.fuzz(parser, seed=0, cases=50)
    assert any(place.startswith("JSONDecodeError at") for place in outcome.crashes)
    for number, _, data in outcome.crashes.values():
        assert fuzz.case(parser, 0, number) == data
        with pytest.raises(ValueError, match=r".*"):
            careless(data, tmp_path)


def test_the_command_says_how_many_cases_it_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["items", "--cases", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["items", "20"]
    assert lines[-1] == "20 cases, 0 crashes"


def test_mutations_change_files_and_nothing_else() -> None:
    value = {"a": [1, {"b": None}], "c": "x"}
    before = json.dumps(value)
    changed = [mutate_value(value, random.Random(seed)) for seed in range(50)]
    assert json.dumps(value) == before
    assert len({repr(entry) for entry in changed}) > 30
    data = b"some bytes of a file"
    assert len({mutate_bytes(data, [data], random.Random(seed)) for seed in range(50)}) > 30
    assert mutate_bytes(data, [data], random.Random(7)) == mutate_bytes(data, [data], random.Random(7))
