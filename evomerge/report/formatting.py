"""Numbers as people read them, and text of strangers made fit to be shown."""

from __future__ import annotations

import math
import unicodedata

LONGEST = 200
"""Characters of a name or a message; what is longer is cut in the middle."""


def clean(text: object, most: int = LONGEST) -> str:
    """One line of a stranger's text: without control characters and marks that turn the writing direction, and cut."""
    kept = "".join(
        c if c == " " or unicodedata.category(c) not in _UNSEEN else " " for c in str(text)[: 4 * most + 100]
    )
    return cut(" ".join(kept.split()), most)


def clean_lines(text: object, most: int = 4000) -> str:
    """Several lines of a stranger's text, made fit to be shown as `clean` does, and cut."""
    lines = str(text)[: 2 * most].splitlines()
    kept = ["".join(c if c == "\t" or unicodedata.category(c) not in _UNSEEN else " " for c in line) for line in lines]
    return cut("\n".join(kept).strip("\n"), most)


def cut(text: str, most: int) -> str:
    """The text, or its two ends."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 3
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


_UNSEEN = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def number(value: float | None) -> str:
    """``0.678``, ``12.4``, ``1,234``, ``3.2e+08``; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size != 0 and (size >= 1e6 or size < 5e-4):
        return f"{value:.2e}".replace("-", "−")
    text = f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"
    return text.replace("-", "−")


def signed(value: float | None) -> str:
    """`number` with its sign, also of gains."""
    if value is None or math.isnan(value):
        return "–"
    text = number(value)
    return text if text.startswith("−") else f"+{text}"


def count(value: int, what: str = "", plural: str | None = None) -> str:
    """``10,000``, or ``1 model`` and ``3 models``."""
    if not what:
        return f"{value:,}"
    return f"{value:,} {what if value == 1 else plural or what + 's'}"


def rate(per_hour: float) -> str:
    """Candidates an hour: ``1,234``, ``12.3``."""
    return f"{per_hour:,.0f}" if per_hour >= 100 else f"{per_hour:.3g}"


def percent(share: float) -> str:
    """``12 %``; tenths below ten."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.1f} %"


def duration(seconds: float) -> str:
    """The two units that matter: ``12 ms``, ``4.2 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    for size, unit, part, smaller in ((60, "min", 1, "s"), (3600, "h", 60, "min"), (86400, "d", 3600, "h")):
        whole = round(seconds / part) * part
        if whole < _NEXT[unit]:
            rest = whole % size // part
            return f"{whole // size:,} {unit} {rest} {smaller}" if rest else f"{whole // size:,} {unit}"
    raise AssertionError("days have no end")


_NEXT = {"min": 3600, "h": 86400, "d": math.inf}


def listed(names: list[str], most: int = 4) -> str:
    """``a``, ``a and b``, ``a, b and c``, ``a, b, c and 4 others``."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def p_text(p_value: float) -> str:
    """A p-value with two digits: ``0.043``, ``1.2e-9``, ``< 1e-300``."""
    if p_value < 1e-300:
        return "< 1e-300"
    if p_value >= 0.001:
        return f"{p_value:.2g}" if p_value < 0.995 else "1"
    mantissa, exponent = f"{p_value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def fixed(value: float | None) -> str:
    """For columns of a terminal: ``0.678``, ``1234``; a hyphen for none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def signed_fixed(value: float | None) -> str:
    """`fixed` with its sign, also of gains."""
    if value is None:
        return "-"
    text = f"{value:+.3f}" if abs(value) < 100 else f"{value:+.4g}"
    return "+0.000" if text == "-0.000" else text
