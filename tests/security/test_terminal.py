"""Names and messages of strangers on a terminal: they are shown, never obeyed."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text

from evomerge.cli.main import main
from evomerge.report.plain_console import PlainConsole
from evomerge.utils.plain_text import printable

HOSTILE = "[red]a[/] [/nothing] \x1b]0;title\x1b[2J\x9b1m\u202eevil :bomb:"
SHOWN = r"[red]a[/] [/nothing] \x1b]0;title\x1b[2J\x9b1m\u202eevil :bomb:"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("tab\tand\nnewline, 日本語 é 🙂", "tab\tand\nnewline, 日本語 é 🙂"),
        ("\r\b\x7f\ud800\u2028", r"\r\x08\x7f\ud800\u2028"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_console_shows_names_as_they_are() -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=200, force_terminal=True, color_system="truecolor")
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    for content in (HOSTILE, table, Text(HOSTILE)):
        console.print(content)
    written = file.getvalue()
    assert written.count(SHOWN) == 5
    assert "\x1b]" not in written
    assert "\x1b[2J" not in written
    console.print("x", style="red")
    assert file.getvalue().endswith("\x1b[31mx\x1b[0m\n")


def test_an_error_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{HOSTILE}"]) == 2
    text = capsys.readouterr().err
    assert r"\x1b]0;title" in text
    assert "\x1b" not in text
