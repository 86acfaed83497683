"""A console on which names and messages are text: what they hold is shown, never obeyed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from evomerge.utils.plain_text import printable

NARROWEST = 20
"""Columns that everything is laid out for at least."""
_UNKNOWN = ConsoleDimensions(80, 25)


class PlainConsole(Console):
    """A `rich.console.Console` without markup, which writes control characters out.

    Names of models, tasks and metrics, and errors of candidates, come from files of others. ``[red]`` in one of them
    is text, as is an escape sequence. Styles are given beside the text: ``style="yellow"``, or a `rich.text.Text`.

    In a notebook it writes lines: its output says that it is a terminal and is none, as nothing moves the cursor up.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, "force_jupyter": False, **arguments})

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines; where ``COLUMNS`` says 0 or next to nothing, those of a terminal that shows something."""
        found = super().size
        columns = found.width if found.width >= NARROWEST else NARROWEST if found.width > 0 else _UNKNOWN.width
        return ConsoleDimensions(columns, found.height if found.height > 0 else _UNKNOWN.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    @property
    def is_terminal(self) -> bool:
        """Whether there is a cursor that can be moved."""
        return super().is_terminal and not type(self.file).__module__.startswith("ipykernel.")

    def render_str(self, text: str, **arguments: Any) -> Text:
        """A string as rich measures and wraps it: as it is shown."""
        return super().render_str(printable(text), **arguments)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of text with control characters written out; rich's own control codes stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


console = PlainConsole()
errors = PlainConsole(stderr=True, soft_wrap=True)
