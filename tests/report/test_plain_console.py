"""Consoles whose width the environment gives away wrongly."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.panel import Panel

from evomerge.report.plain_console import NARROWEST, PlainConsole


@pytest.mark.parametrize(
    ("columns", "width"), [("0", 80), ("1", NARROWEST), ("19", NARROWEST), ("20", 20), ("132", 132), ("x", 80)]
)
def test_something_is_shown_whatever_columns_says(columns: str, width: int) -> None:
    for lines in ("0", "1", "40"):
        file = StringIO()
        console = PlainConsole(file=file, _environ={"COLUMNS": columns, "LINES": lines, "TERM": "xterm"})
        assert console.width == width
        assert console.height == {"0": 25, "1": 1, "40": 40}[lines]
        console.print(Panel("twelve of 12"))
        shown = file.getvalue().splitlines()
        assert "twelve of 12" in file.getvalue()
        assert {len(line) for line in shown} == {width}


def test_a_dumb_terminal_and_a_width_that_is_asked_for() -> None:
    assert PlainConsole(file=StringIO(), force_terminal=True, _environ={"TERM": "dumb", "COLUMNS": "0"}).width == 80
    assert PlainConsole(file=StringIO(), width=60).width == 60
    console = PlainConsole(file=StringIO(), width=0)
    assert console.width == 80
    console.size = (33, 7)
    assert (console.width, console.height) == (33, 7)
