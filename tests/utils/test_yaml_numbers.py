"""Numbers that YAML 1.1 reads in another base are refused wherever YAML of a user is read; all else stays."""

from __future__ import annotations

import pytest
import yaml
from omegaconf import OmegaConf

from evomerge.config.overrides import set_value
from evomerge.errors import ConfigError, RecipeError
from evomerge.utils import safe_yaml
from evomerge.utils.yaml_numbers import misread

ODD = {
    "1:30": 90,
    "-1:30": -90,
    "190:20:30": 685230,
    "1:30.5": 90.5,
    "0:1.0": 1.0,
    "010": 8,
    "-0_17": -15,
}


@pytest.mark.parametrize("text", ODD)
def test_they_are_named_with_what_they_are_read_as(text: str) -> None:
    value = ODD[text]
    assert yaml.safe_load(text) == value
    base = "60" if ":" in text else "8"
    assert misread(text) == f"{value}, in base {base}"
    for document in (f"a: {text}", f"x: 1\na: [1, {{b: {text}}}]", f"{text}: 1"):
        line = document.count("\n") + 1
        with pytest.raises(RecipeError, match=f"line {line}: {text} would be read as {value}, in base {base}"):
            safe_yaml.parse(document)
    with pytest.raises(ConfigError, match=f"a.b={text} would be read as {value}"):
        set_value(OmegaConf.create({"a": {"b": 1}}), "a.b", text)


@pytest.mark.parametrize("text", ["10", "0", "007", "1_000", "0x10", "0x1p3", "1e3", "1:90", "a:30", "09", "0.10"])
def test_others_are_what_they_were(text: str) -> None:
    assert misread(text) == ""
    loaded = yaml.safe_load(f"a: {text}") if text != "1e3" else {"a": 1000.0}
    assert safe_yaml.parse(f"a: {text}") == loaded


@pytest.mark.parametrize("text", ["'1:30'", '"010"'])
def test_text_in_quotes_is_text(text: str) -> None:
    assert safe_yaml.parse(f"a: {text}") == {"a": text[1:-1]}
