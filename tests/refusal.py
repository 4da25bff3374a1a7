"""Refusals: one line with what is wrong, of a call or of a command."""

import subprocess

import pytest

from triptych.errors import UserError


def refused(call, *words: str, error: type[Exception] = UserError) -> str:
    """``call()`` raises ``error``, in one line that has each of ``words``: that line."""
    with pytest.raises(error) as caught:
        call()
    return one_line(str(caught.value), *words)


def refused_if(call, words: str, *more: str) -> None:
    """``call()`` is refused in these words; without words it is not."""
    refused(call, words, *more) if words else call()


def refused_command(done: subprocess.CompletedProcess, *words: str) -> None:
    """The command ended with 1 and such a line on its standard error."""
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
    one_line("\n".join(line for line in done.stderr.splitlines() if line.strip()), *words)


def one_line(message: str, *words: str) -> str:
    assert message and "\n" not in message, message
    for word in words:
        assert word in message, message
    return message
