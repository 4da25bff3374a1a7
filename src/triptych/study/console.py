"""Rich's console with text that is text: names of runs and settings may be anybody's."""

from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from triptych.terminal import canvas, printable


class PlainConsole(Console):
    """Read no markup and show control characters; rich sends its own colours and movements."""

    def __init__(self, stream: TextIO, **options: Any):
        super().__init__(file=canvas(stream), markup=False, highlight=False, emoji=False, **options)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
