"""Check refusals of a call or of a command: one line that says what is wrong."""

import subprocess

import pytest

from triptych.errors import UserError


def refused(call, *words: str, error: type[Exception] = UserError) -> str:
    """Check that ``call()`` raises ``error`` in one line with each of ``words``; return it."""
    with pytest.raises(error) as caught:
        call()
    return one_line(str(caught.value), *words)


def refused_if(call, words: str, *more: str) -> None:
    """Check that ``call()`` is refused with these words or, without words, is not refused."""
    refused(call, words, *more) if words else call()


def refused_command(done: subprocess.CompletedProcess, *words: str) -> None:
    """Check that the command ended with 1 and such a line on its standard error."""
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
    one_line("\n".join(line for line in done.stderr.splitlines() if line.strip()), *words)


def one_line(message: str, *words: str) -> str:
    assert message and "\n" not in message, message
    for word in words:
        assert word in message, message
    return message
