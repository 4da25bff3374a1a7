"""Write to terminals so that printed text cannot control them.

Our tables and progress bars write to the stream behind.
"""

import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

# Characters that control a terminal: C0 and C1 except tab and line ends, and marks that change the
# direction of text. Surrogates, which come from file names that are not UTF-8, cannot be written.
CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)


def escape_control_characters(value: Any) -> Any:
    r"""Escape control characters in a text, or in all texts of JSON: ESC becomes "\\x1b".

    Line ends stay.
    """
    if isinstance(value, str):
        if value.isprintable():  # most texts have no control characters
            return value
        return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), value)
    if isinstance(value, list):
        return [escape_control_characters(entry) for entry in value]
    if isinstance(value, dict):
        return {
            escape_control_characters(key): escape_control_characters(entry)
            for key, entry in value.items()
        }
    return value


def as_one_line(text: object) -> str:
    """Return a text, or an error's message, in one line with control characters escaped."""
    return " ".join(escape_control_characters(str(text)).split())


class PlainStream:
    """A text stream that escapes control characters before the terminal receives them.

    It reports that it is no terminal, so that libraries do not write colours to it.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        if text.startswith("\r"):  # a library's progress bar: each write replaces the line
            self.stream.write("\r")
        self.stream.write(escape_control_characters(text.removeprefix("\r")))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def escaped_stream(stream: TextIO) -> TextIO:
    """Return ``stream`` with control characters escaped; a PlainStream is returned unchanged."""
    return stream if isinstance(stream, PlainStream) else cast(TextIO, PlainStream(stream))


def unescaped_stream(stream: TextIO) -> TextIO:
    """Return the stream behind a plain stream, for our own tables and progress bars."""
    return stream.stream if isinstance(stream, PlainStream) else stream


def progress_bar(*steps: Iterable[Any], **options: Any) -> Any:
    """Return a progress bar of tqdm on standard error, which is removed at its end.

    It counts ``steps``, if they are given.
    """
    from tqdm import tqdm

    return tqdm(*steps, file=unescaped_stream(sys.stderr), leave=False, **options)
