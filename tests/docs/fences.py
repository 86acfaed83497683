"""The code blocks of the README and of the pages in docs, and the commands that bash makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

# Bash itself reads the blocks: continuations, quotes, comments, loops, braces, pipes. It finds no programs; what it
# would start is written down instead, words separated by the unit separator.
_RECORDER = r"""
command_not_found_handle() { (IFS=$'\x1f'; printf '%s\x1e' "$*" >> "$RECORD"); }
cd() { command_not_found_handle cd "$@"; }
source() { command_not_found_handle source "$@"; }
export() { :; }
wait() { :; }
PATH=/nowhere
"""
_SHIM = r"""#!/bin/sh
IFS=$(printf '\037x'); IFS=${IFS%x}
set -- "$0" "$@"
printf '%s\036' "$*" >> "$RECORD"
"""


@dataclass(frozen=True)
class Fence:
    """A code block: the page and line where it begins, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that the block says it is, in a comment on its first line."""
        found = re.match(r"# ([\w/.-]+\.(?:py|yaml|yml))(?:$|[\s:])", self.text)
        return found[1] if found else None


@dataclass(frozen=True)
class Command:
    """A command of a block, as a shell would start it."""

    place: str
    words: tuple[str, ...]


@cache
def fences() -> tuple[Fence, ...]:
    """Every block of every page, in order; directives of Sphinx are none."""
    return tuple(fence for page in PAGES for fence in _of(page))


def _of(page: Path) -> Iterator[Fence]:
    name = page.relative_to(ROOT).as_posix()
    start: int | None = None
    language, lines = "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```([\w{}-]*)", line)
        if not fence:
            lines.append(line)
        elif start is None:
            start, language, lines = number, fence[1], []
        else:
            if not language.startswith("{"):
                yield Fence(name, start, language, "\n".join(lines) + "\n")
            start = None
    assert start is None, f"{name}:{start} is not closed"


@cache
def commands() -> tuple[Command, ...]:
    """What the bash blocks of all pages would start, in order.

    Of those that differ in numbers or in the run's name only, the first; on pages with files of their own, all.
    """
    own = {fence.page for fence in fences() if fence.file}
    alike: dict[tuple[str, str], Command] = {}
    for fence in (fence for fence in fences() if fence.language == "bash"):
        for command in read_commands(fence):
            words = re.sub(r"runs/[^\s,/]+|\d+", "0", " ".join(command.words))
            alike.setdefault((fence.page if fence.page in own else "", words), command)
    return tuple(alike.values())


def read_commands(fence: Fence) -> list[Command]:
    """What one block would start."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record"
        record.touch()
        for script in (ROOT / "scripts").glob("*.sh"):  # named by a path, which no shell takes for a missing command
            shim = Path(folder) / "scripts" / script.name
            shim.parent.mkdir(exist_ok=True)
            shim.write_text(_SHIM)
            shim.chmod(0o755)
        bash = shutil.which("bash")
        assert bash is not None
        done = subprocess.run(
            [bash, "--norc", "-c", _RECORDER + fence.text],
            env={"RECORD": str(record), "HOME": folder},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        # What a recorded program would have made is not there, and a pipe may end with that; broken syntax is another
        # thing.
        assert "syntax error" not in done.stderr, f"{fence.place}: {done.stderr}"
        assert "unexpected EOF" not in done.stderr, f"{fence.place}: {done.stderr}"
        text = record.read_text(encoding="utf-8")
    return [Command(fence.place, tuple(words.split("\x1f"))) for words in text.split("\x1e") if words]
