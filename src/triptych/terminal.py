"""Write text to terminals with control characters escaped, as it may come from untrusted files.

The project's own tables and progress bars need colours, so they are written unescaped.
"""

import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

# Control characters: C0 and C1 except tab and line ends, and marks that change the direction of
# text. Surrogates come from file names that are not UTF-8, and cannot be encoded.
CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)


def escape_control_characters(value: Any) -> Any:
    r"""Escape control characters in a text, or in every text of parsed JSON: ESC becomes "\\x1b".

    Line ends are kept.
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

    Its ``isatty`` is false, so that libraries do not write colours to it.
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
    """Wrap ``stream`` in a PlainStream, unless it is a PlainStream already."""
    return stream if isinstance(stream, PlainStream) else cast(TextIO, PlainStream(stream))


def unescaped_stream(stream: TextIO) -> TextIO:
    """Return the original stream behind a PlainStream, for our own tables and progress bars."""
    return stream.stream if isinstance(stream, PlainStream) else stream


def progress_bar(*steps: Iterable[Any], **options: Any) -> Any:
    """Return a tqdm progress bar over ``steps`` on standard error, which disappears at its end.

    Without ``steps`` the caller updates it. ``options`` are passed to tqdm.
    """
    from tqdm import tqdm

    return tqdm(*steps, file=unescaped_stream(sys.stderr), leave=False, **options)
