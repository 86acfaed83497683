"""Ids of tokens in config.json and generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import PoolError
from evomerge.models.architecture.config_fields import check_fields, check_generation

ODD = ["x", [1, "x"], 1.5, [], True, 1e30, [[2]], {"a": 1}, 10**30, [2, None]]


@pytest.mark.parametrize("value", ODD, ids=str)
def test_odd_ids_are_refused_with_their_file(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"do_sample": False, "eos_token_id": value}))
    with pytest.raises(PoolError, match=r"generation_config\.json has eos_token_id .*; the id of a token, or a list"):
        check_generation(tmp_path)
    with pytest.raises(PoolError, match=r"/config\.json has eos_token_id"):
        check_fields({"eos_token_id": value}, tmp_path / "config.json")


def test_what_models_have_is_taken(tmp_path: Path) -> None:
    check_generation(tmp_path)  # no file
    for eos in (None, 2, [1, 2], 0):
        content = {"eos_token_id": eos, "pad_token_id": -1, "bos_token_id": 1, "temperature": 0.6}
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
        check_generation(tmp_path)
        check_fields(content, tmp_path / "config.json")
    (tmp_path / "generation_config.json").write_text(json.dumps({"pad_token_id": [1]}))
    with pytest.raises(PoolError, match=r"has pad_token_id list \[1\]; the id of a token; null for none"):
        check_generation(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"), [(b"{", "is no JSON"), (b'{"a": "\xe9"}', "is no JSON"), (b"[1]", "list")]
)
def test_files_that_are_none(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(PoolError, match=says) as caught:
        check_generation(tmp_path)
    assert str(tmp_path / "generation_config.json") in str(caught.value)
