"""Text of strangers as a terminal may be shown it: without what moves the cursor, colours, renames or reorders."""

from __future__ import annotations

import re

# C0 and C1 control characters but tab and newline, marks that reorder text, separators of lines, lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters written out, as in ``\\x1b``; tabs and newlines stay."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_printable_line(text: str) -> str:
    """The text as `printable` gives it, line breaks written out too: a name with one in it makes no second line."""
    return printable(text).replace("\n", "\\n").replace("\t", " ")
