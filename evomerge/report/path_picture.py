"""The picture of a path in the terminal: its layers in order, each in its source's colour, with the scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from evomerge.recipes.path import LayerPath, PathLayer, is_scaled, scale_text
from evomerge.report.colours import colour


class PathPicture:
    """Prints a path with a `rich.console.Console`: as wide as the terminal, on several lines where it must be.

    Every cell is a layer with its number in its source. Under it, where it is not 1, stands the scale on the way into
    it. Before the first of a run from the same source its name is written above, so that no colours are needed.
    """

    def __init__(self, path: LayerPath) -> None:
        self._path = path

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        path = self._path
        scales = [scale_text(layer.input_scale) for layer in path.layers if is_scaled(layer.input_scale)]
        number = max(len(str(layer.layer)) for layer in path.layers)
        width = max(number + 3, *(len(word) + 1 for word in scales), 0)
        line = max(1, options.max_width // width)
        title = Text(path.title, style="bold")
        for source in path.sources:
            title.append("  ■ ", style=colour(source, path.sources)).append(source, style="not bold")
        yield title
        for start in range(0, len(path.layers), line):
            shown = path.layers[start : start + line]
            yield Text("")
            yield self._names(shown, width)
            yield self._cells(shown, width)
            if any(is_scaled(layer.input_scale) for layer in shown):
                yield self._scales(shown, width)
        yield Text("")
        yield Text(path.note, style="dim")

    def _names(self, layers: Sequence[PathLayer], width: int) -> Text:
        """The name of every run over its first cell, as far as there is room."""
        text = Text(no_wrap=True)
        for run in _runs(layers):
            room = width * len(run)
            name = run[0].source
            name = name if len(name) < room else name[: room - 2] + "…"
            text.append(name.ljust(room), style=f"bold {colour(run[0].source, self._path.sources)}")
        text.rstrip()
        return text

    def _cells(self, layers: Sequence[PathLayer], width: int) -> Text:
        text = Text(no_wrap=True)
        for layer in layers:
            style = f"bold white on {colour(layer.source, self._path.sources)}"
            text.append(str(layer.layer).center(width - 1), style=style).append(" ")
        return text

    def _scales(self, layers: Sequence[PathLayer], width: int) -> Text:
        shown = [scale_text(layer.input_scale) if is_scaled(layer.input_scale) else "" for layer in layers]
        text = Text("".join(word.center(width - 1) + " " for word in shown), no_wrap=True)
        text.rstrip()
        return text


def _runs(layers: Sequence[PathLayer]) -> Iterator[list[PathLayer]]:
    """Neighbours from the same source."""
    run: list[PathLayer] = []
    for layer in layers:
        if run and layer.source != run[0].source:
            yield run
            run = []
        run.append(layer)
    if run:
        yield run
