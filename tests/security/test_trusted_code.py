"""Code that models bring along, once asked for, runs again for merging and scoring, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.models.trusted_code import asked_before, remember
from evomerge.recipes.slices import ModelRef


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "own.Own"}}))
    (folder / "own.py").write_text("class Own: ...\n")
    return folder


def test_what_was_asked_for_is_remembered_as_long_as_not_a_byte_changes(own_code: Path) -> None:
    refs = [ModelRef(str(own_code))]
    assert not asked_before(refs)
    remember([own_code])
    assert asked_before(refs)
    (own_code / "own.py").write_text("class Own: ...\nimport os\n")
    assert not asked_before(refs)


def test_code_beside_it_and_another_class_count_too(own_code: Path) -> None:
    remember([own_code])
    (own_code / "more.py").write_text("")
    assert not asked_before([ModelRef(str(own_code))])
    (own_code / "more.py").unlink()
    assert asked_before([ModelRef(str(own_code))])
    (own_code / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "own.Other"}}))
    assert not asked_before([ModelRef(str(own_code))])


def test_code_of_another_repository_is_never_remembered(own_code: Path) -> None:
    (own_code / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "org/name--own.Own"}}))
    remember([own_code])
    assert not asked_before([ModelRef(str(own_code))])


def test_models_without_code_ask_for_nothing(own_code: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    remember([own_code])
    assert asked_before([ModelRef(str(own_code)), ModelRef(str(plain))])
    assert not asked_before([ModelRef(str(plain))])
    assert not asked_before([ModelRef(str(tmp_path / "nowhere"))])
