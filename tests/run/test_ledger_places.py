"""Run folders whose ledger is no file: what lies there is said, and nothing that does not fit is advised."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evomerge.errors import OutputError, RecipeError
from evomerge.run.folder import RunFolder
from evomerge.run.ledger_file import LedgerError
from evomerge.utils.files import write_text_atomic
from evomerge.utils.safe_yaml import text


@pytest.mark.parametrize("kind", ["folder", "special file", "link to nothing"])
def test_what_lies_in_the_ledgers_place_is_said(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "ledger.jsonl"
    if kind == "folder":
        place.mkdir()
    elif kind == "special file":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path / "gone")
    with pytest.raises(LedgerError, match=f"has a {kind} for a ledger.jsonl"):
        RunFolder.open(tmp_path)


def test_a_folder_in_the_way_is_no_lack_of_room(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match="Is a directory") as caught:
        write_text_atomic(tmp_path / "report.html", "text")
    assert "free some space" not in str(caught.value)
    assert "choose another name" in str(caught.value)


@pytest.mark.parametrize(("given", "quoted"), [(12, True), (["embed"], False), ({"x": 1}, False)])
def test_quotes_are_advised_for_what_they_make_text(given: object, quoted: bool) -> None:
    with pytest.raises(RecipeError) as caught:
        text(given, "model")
    assert ("put it in quotes" in str(caught.value)) is quoted
