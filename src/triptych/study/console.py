"""Rich's console without markup, because names of runs and settings may be untrusted."""

from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from triptych.terminal import escape_control_characters, unescaped_stream


class PlainConsole(Console):
    """A console that reads no markup and escapes control characters; rich's own colours stay."""

    def __init__(self, stream: TextIO, **options: Any):
        super().__init__(
            file=unescaped_stream(stream), markup=False, highlight=False, emoji=False, **options
        )

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, and escape control characters in the text."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(escape_control_characters(segment.text), segment.style)
