"""A call in a new process: its value, its errors, and its end."""

import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.refusal import refused
from triptych.config.own_code import (
    import_module,
    original_environment,
    recorded_sources,
    remember_imported,
    restore_environment,
)
from triptych.errors import Diverged, Interrupted
from triptych.run.new_process import (
    PROGRAM,
    FailedCall,
    call_in_new_process,
    remember_environment,
)


def fail(kind: str) -> None:
    """Fail in one of three ways."""
    if kind == "error":
        raise KeyError("lost")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise Diverged("a sample", 7)


def leave(code: int) -> None:
    """End this process."""
    os._exit(code)


def kill_server() -> None:
    """Kill the server that has forked this process."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(10)


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


def test_threads_receive_their_own_answers():
    """Each thread has its own server."""
    with ThreadPoolExecutor(3) as pool:
        answers = [*pool.map(lambda number: call_in_new_process(abs, -number), range(12))]
    assert answers == [*range(12)]


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


def imported_value(name: str) -> int:
    """Return the number that a module has."""
    return importlib.import_module(name).VALUE


def test_new_process_imports_recorded_source_of_edited_module(tmp_path, monkeypatch):
    """A run's figures come from the code that has trained it, whatever happens to the files."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TRIPTYCH_TRUST", "edited_lab")
    package = tmp_path / "edited_lab"
    package.mkdir()
    for name in ("__init__.py", "net.py"):
        (package / name).write_text("VALUE = 1\n")
    importlib.import_module("edited_lab.net")
    remember_imported()
    for name in ("__init__.py", "net.py"):
        # Of another size, as Python compares a cached file by size and whole seconds.
        (package / name).write_text("VALUE = 2  # edited\n")
    remember_environment()
    for name in ("edited_lab", "edited_lab.net"):
        assert call_in_new_process(imported_value, name) == 2
        assert call_in_new_process(imported_value, name, sources=recorded_sources()) == 1


def test_variable_that_import_sets_does_not_reach_other_processes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LAB", "before")
    monkeypatch.delenv("NEW_IN_LAB", raising=False)
    lines = "import os", 'os.environ["LAB"] = "after"', 'os.environ["NEW_IN_LAB"] = "1"'
    (tmp_path / "lab_variables.py").write_text("\n".join(lines))
    import_module("lab_variables")
    assert os.environ["LAB"] == "after"  # The module's own process has it.
    assert original_environment()["LAB"] == "before" and "NEW_IN_LAB" not in original_environment()
    remember_environment()
    assert call_in_new_process(process)[2] == "before"
    restore_environment()
    assert os.environ["LAB"] == "before" and "NEW_IN_LAB" not in os.environ


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


@pytest.mark.parametrize("code", [3, 0])
def test_exited_new_process_is_reported_and_replaced(code):
    problem = f"stopped with exit code {code}"
    refused(lambda: call_in_new_process(leave, code), problem, error=FailedCall)
    assert call_in_new_process(process)[0] != os.getpid()


def test_server_whose_parent_has_ended_ends():
    """The parent may end before the server can ask the kernel to be ended with it."""
    line = [sys.executable, "-c", PROGRAM.format(parent=1)]
    assert subprocess.run(line, timeout=60, stdin=subprocess.PIPE).returncode == 1


def test_killed_new_process_interrupts_the_run():
    with pytest.raises(Interrupted, match="a process of the run was killed .SIGKILL.; repeat"):
        call_in_new_process(fail, "kill")
    assert call_in_new_process(process)[0] != os.getpid()


def test_killed_server_interrupts_the_run():
    with pytest.raises(Interrupted, match="a process of the run was killed .SIGKILL.; repeat"):
        call_in_new_process(kill_server)
    assert call_in_new_process(process)[0] != os.getpid()
