"""Figures for plotly.js: plain dictionaries whose colours are names of the page's, so that they suit light and dark."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.report.colours import COLOURS
from evomerge.report.formatting import clean

ACCENT, TEXT, QUIET, FAINT, LINE, GROUND = (
    f"var(--{name})" for name in ("accent", "text", "quiet", "faint", "line", "ground")
)
"""Colours: the page's script replaces them by what the reader's theme has."""

MOST_POINTS = 2000
RAISED: Sequence[Sequence[Any]] = ((0.0, "var(--heat-low)"), (1.0, "var(--heat-high)"))
"""Heat maps of values from none to much."""
TWO_SIDED: Sequence[Sequence[Any]] = ((0.0, "var(--minus)"), (0.5, "var(--heat-low)"), (1.0, "var(--heat-high)"))
"""Heat maps around zero."""


@dataclass(frozen=True)
class Plot:
    """A figure, or several of which the reader chooses one.

    Attributes:
        views: label and figure: ``{"data": [...], "layout": {...}}``.
        height: in pixels.
        about: what it shows, for those who cannot see it.
    """

    views: Mapping[str, Mapping[str, Any]]
    height: int
    about: str


def label(text: object, most: int = 60) -> str:
    """A stranger's text for a figure: plotly.js reads a little HTML in labels, so that it is escaped."""
    return html.escape(clean(text, most), quote=False)


def series(color: int) -> str:
    """The colour of one of several runs."""
    return COLOURS[color % len(COLOURS)]


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Numbers with six digits, which no eye can tell from more; none for what is not finite."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.6g}") for v in values]


def thinned(length: int, most: int = MOST_POINTS) -> list[int]:
    """At most so many places out of a length, evenly spaced, the last among them."""
    if length <= most:
        return list(range(length))
    step = (length - 1) / (most - 1)
    return [round(place * step) for place in range(most)]


def embed(value: Any) -> str:
    """JSON that can stand in a script element whatever strings are in it."""
    text = json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def figure(*traces: Mapping[str, Any], **layout: Any) -> dict[str, Any]:
    """A figure of traces."""
    return {"data": [dict(trace) for trace in traces], "layout": layout}


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis with a title."""
    return {**({"title": {"text": title}} if title else {}), **more}


def beside(
    text: str, y: float, *, x: float = 1.0, color: str = QUIET, above: bool = True, **more: Any
) -> dict[str, Any]:
    """A word at the right end of a horizontal line."""
    place = {"xref": "paper", "x": x, "xanchor": "right", "yref": "y", "y": y}
    font = {"size": 11, "color": color}
    return {
        **place,
        "text": text,
        "showarrow": False,
        "yanchor": "bottom" if above else "top",
        "font": font,
        "bgcolor": "var(--veil)",
        "borderpad": 1,
        **more,
    }
