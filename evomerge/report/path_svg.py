"""The picture of a path as SVG: a row for each source, the layers in order from left to right, lines between them."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from evomerge.recipes.path import LayerPath, is_scaled, scale_text
from evomerge.report.colours import colour

_CELL, _HEIGHT, _STEP, _ROW = 28, 24, 42, 52
_PER_LINE = 24
_MARGIN, _TOP, _GAP = 18, 58, 30

_STYLE = """
.path { font-family: ui-sans-serif, system-ui, sans-serif; color: #24292f; }
.path .ground { fill: #ffffff; } .path .lane { stroke: #d8dee4; } .path .flow { stroke: #57606a; fill: none; }
.path text { fill: currentColor; } .path .number { fill: #ffffff; font-weight: 600; } .path .small { fill: #57606a; }
@media (prefers-color-scheme: dark) {
  .path { color: #e6edf3; } .path .ground { fill: #0d1117; } .path .lane { stroke: #30363d; }
  .path .flow { stroke: #8b949e; } .path .small { fill: #9da7b1; }
}
""".strip()


def path_svg(path: LayerPath, per_line: int = _PER_LINE, captions: bool = True) -> str:
    """The picture as the text of an SVG file that needs nothing else, for light and dark pages.

    Args:
        per_line: layers side by side; a longer path goes on below.
        captions: whether title and note are part of it.
    """
    label = max(len(source) for source in path.sources) * 8.4 + 36
    left = _MARGIN + label
    shown = min(per_line, len(path.layers))
    band = len(path.sources) * _ROW + _GAP
    lines = -(-len(path.layers) // per_line)
    width = left + shown * _STEP + _MARGIN
    height = _TOP + lines * band + 8
    if captions:
        width = max(width, 2 * _MARGIN + 9.2 * len(path.title), 2 * _MARGIN + 7.4 * len(path.note))
        seen = f"0 0 {width:.0f} {height}"
    else:  # the same picture without its margins
        width, height = width - 2 * _MARGIN, height - _TOP - _GAP
        seen = f"{_MARGIN} {_TOP} {width:.0f} {height}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="path" role="img" viewBox="{seen}" '
        f'width="{width:.0f}" height="{height}">',
        f"<title>{escape(path.title)}</title>",
        f"<style>{_STYLE}</style>",
    ]
    if captions:
        parts += [
            f'<rect class="ground" width="{width:.0f}" height="{height}" rx="6"/>',
            f'<text x="{_MARGIN}" y="26" font-size="14" font-weight="600">{escape(path.title)}</text>',
            f'<text class="small" x="{_MARGIN}" y="45" font-size="12">{escape(path.note)}</text>',
        ]
    for line in range(lines):
        parts += _lanes(path, line, left, _TOP + line * band, per_line)
    for number in range(1, len(path.layers)):
        parts.append(_flow(path, number, left, band, per_line))
    for number in range(len(path.layers)):
        parts += _cell(path, number, left, band, per_line)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _place(path: LayerPath, number: int, left: float, band: int, per_line: int) -> tuple[float, float]:
    """The centre of a layer's cell."""
    line, column = divmod(number, per_line)
    row = path.sources.index(path.layers[number].source)
    return left + column * _STEP + _CELL / 2, _TOP + line * band + row * _ROW + _ROW / 2


def _lanes(path: LayerPath, line: int, left: float, top: float, per_line: int) -> Iterator[str]:
    """Names of the sources, and a faint line for each."""
    count = min(per_line, len(path.layers) - line * per_line)
    right = left + (count - 1) * _STEP + _CELL
    for row, source in enumerate(path.sources):
        y = top + row * _ROW + _ROW / 2
        fill = colour(source, path.sources)
        yield f'<rect x="{_MARGIN}" y="{y - 5}" width="10" height="10" rx="2" fill="{fill}"/>'
        yield f'<text x="{_MARGIN + 16}" y="{y + 4.5}" font-size="13">{escape(source)}</text>'
        yield f'<line class="lane" x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke-dasharray="2 4"/>'


def _flow(path: LayerPath, number: int, left: float, band: int, per_line: int) -> str:
    """The way from the layer before; to the next line it leaves on the right and comes in from the left."""
    (x1, y1), (x2, y2) = (_place(path, place, left, band, per_line) for place in (number - 1, number))
    if number % per_line == 0:
        out, into = x1 + _CELL / 2, x2 - _CELL / 2
        return f'<path class="flow" d="M{out} {y1}h10M{into - 10} {y2}h10" stroke-width="1.6" stroke-dasharray="3 3"/>'
    start, end = x1 + _CELL / 2, x2 - _CELL / 2
    middle = (start + end) / 2
    return f'<path class="flow" d="M{start} {y1}C{middle} {y1} {middle} {y2} {end} {y2}" stroke-width="1.6"/>'


def _cell(path: LayerPath, number: int, left: float, band: int, per_line: int) -> Iterator[str]:
    """A layer with its number in its source, and the scale on the way into it above."""
    layer = path.layers[number]
    x, y = _place(path, number, left, band, per_line)
    about = f"layer {number} of the path: layer {layer.layer} of {layer.source}"
    about += f", scale {layer.input_scale:.4g}" if is_scaled(layer.input_scale) else ""
    yield f"<g><title>{escape(about)}</title>"
    yield (
        f'<rect x="{x - _CELL / 2}" y="{y - _HEIGHT / 2}" width="{_CELL}" height="{_HEIGHT}" rx="5" '
        f'fill="{colour(layer.source, path.sources)}"/>'
    )
    yield f'<text class="number" x="{x}" y="{y + 4.5}" font-size="12" text-anchor="middle">{layer.layer}</text>'
    if is_scaled(layer.input_scale):
        label = scale_text(layer.input_scale)
        yield f'<text class="small" x="{x}" y="{y - 15}" font-size="10.5" text-anchor="middle">{label}</text>'
    yield "</g>"
