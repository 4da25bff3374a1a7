"""A call in a new process: its value, its errors, and its end."""

import os
import pickle
import sys
import traceback

import pytest

from tests.refusal import refused
from triptych.errors import Diverged
from triptych.run.new_process import FailedCall, call_in_new_process, remember_environment


def fail(kind: str) -> None:
    """Fail in one of three ways."""
    if kind == "error":
        raise KeyError("lost")
    if kind == "exit":
        os._exit(3)
    raise Diverged("a sample", 7)


def leave_and_read(number: int) -> int:
    """Count up a number in a module, and return it."""
    sys.left = [*getattr(sys, "left", []), number]
    return len(sys.left)


def process() -> tuple[int, str, str]:
    """Return the process's number, folder and one of its variables."""
    print("what the user's code prints is no answer")
    return os.getpid(), os.getcwd(), os.environ.get("LAB", "")


def search_path() -> list[str]:
    """Return where this process looks for modules."""
    return sys.path


def test_new_process_has_remembered_environment_folder_and_search_path(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB", "before")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # as in a notebook
    remember_environment()
    monkeypatch.setenv("LAB", "after")
    monkeypatch.chdir("/")
    number, folder, value = call_in_new_process(process)
    assert (number != os.getpid(), folder, value) == (True, str(tmp_path), "before")
    there = call_in_new_process(search_path)
    assert "" not in there and str(tmp_path) in there


def test_new_process_keeps_current_folder_on_sys_path_only_if_set(tmp_path, monkeypatch):
    """The tests after it call the server that this one has started."""
    monkeypatch.chdir(tmp_path)
    remember_environment()
    there = call_in_new_process(search_path)
    assert "" not in there and str(tmp_path) not in there


def test_call_in_new_process_starts_without_earlier_state():
    assert [call_in_new_process(leave_and_read, number) for number in (5, 5)] == [1, 1]
    assert leave_and_read(5) == 1


def test_failed_call_is_one_line_with_traceback_note():
    refused(lambda: call_in_new_process(fail, "error"), "KeyError: 'lost'", error=FailedCall)
    with pytest.raises(FailedCall) as failed:
        call_in_new_process(fail, "error")
    assert 'raise KeyError("lost")' in "".join(traceback.format_exception(failed.value))


def test_diverged_error_is_passed_through_new_process():
    with pytest.raises(Diverged, match="diverged at step 7: a sample is not finite") as diverged:
        call_in_new_process(fail, "diverged")
    assert pickle.loads(pickle.dumps(diverged.value)).step == 7


def test_exited_new_process_is_reported_and_replaced():
    refused(lambda: call_in_new_process(fail, "exit"), "stopped with exit code 3", error=FailedCall)
    assert call_in_new_process(process)[0] != os.getpid()
