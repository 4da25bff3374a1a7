"""Run commands in processes that have imported torch before they start, and so are fast.

A server that has imported what a command imports is forked for each. What a process does before and
while it imports is shown by tests/cli/test_startup.py and the others that start Python itself.
"""

import atexit
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests import references

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.warm"])
ROOT = Path(__file__).parents[1]
OWN = os.pathsep.join([str(ROOT / "src"), str(ROOT)])  # of this tree, wherever one is installed
SHARED = "TRIPTYCH_TEST_FORKS"  # in the environment: where the server of this session is


def serve() -> None:
    """Start the server, which all workers of a session share: its imports take ten seconds."""
    # The server looks for modules on PYTHONPATH alone, as other folders have packages named tests.
    with mock.patch.dict(os.environ, {"PYTHONPATH": OWN, "PYTHONSAFEPATH": "1"}):
        forkserver.ensure_running()
    os.environ[SHARED] = forkserver._forkserver._forkserver_address


def _connect() -> None:
    """Use the server of this session, and start one if there is none."""
    server: Any = forkserver._forkserver
    if SHARED not in os.environ:
        serve()
    elif server._forkserver_pid is None and "ensure_running" not in vars(server):
        server._forkserver_address = os.environ[SHARED]
        server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)
        server.ensure_running = resource_tracker.ensure_running  # it is no child of ours


def run(
    line: list[str], env: dict[str, str], cwd: Any = None, check: bool = False, timeout: float = 280
) -> subprocess.CompletedProcess:
    """As ``subprocess.run`` with both streams captured; ``line``: [python, "-m", module, ...]."""
    _connect()
    streams = [tempfile.mkstemp(suffix=end)[1] for end in (".out", ".err")]
    env = env | {SHARED: os.environ[SHARED]}  # for ranks that the command starts
    process = SERVER.Process(target=_begin, args=(line, env, str(cwd or os.getcwd()), *streams))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(line, timeout)
    out, err = (Path(stream).read_text(errors="replace") for stream in streams)
    for stream in streams:
        os.unlink(stream)
    assert not (check and process.exitcode), err
    return subprocess.CompletedProcess(line, process.exitcode, out, err)


def start_call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Start a call in such a process, which shares no state with this one.

    The returned function waits for the value; it raises EOFError if the process failed.
    """
    _connect()
    here, there = SERVER.Pipe(duplex=False)
    surroundings = dict(os.environ), os.getcwd(), sys.path
    SERVER.Process(target=_send, args=(there, surroundings, function, arguments)).start()
    there.close()
    return lambda: pickle.loads(here.recv_bytes())


def _send(there: Any, surroundings: Any, function: Callable[..., Any], arguments: Any) -> None:
    environment, folder, sys.path[:] = surroundings
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # A tensor that is sent as it is lies in memory of this process.
    there.send_bytes(pickle.dumps(function(*arguments)))


class _Rank:
    """Another rank of a run, in a process of the server; it stands for ``subprocess.Popen``."""

    def __init__(self, line: list[str], env: dict[str, str]):
        _connect()
        # The rank is no child of rank 0, which it would watch.
        env = {name: value for name, value in env.items() if name != "TRIPTYCH_PARENT"}
        streams = [f"/proc/{os.getpid()}/fd/{number}" for number in (1, 2)]
        self.process: Any = SERVER.Process(target=_begin, args=(line, env, os.getcwd(), *streams))
        self.process.start()

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self.process.exitcode

    def kill(self) -> None:
        """End the process."""
        self.process.kill()


class _Replaced(BaseException):
    """Raised where the process becomes another command."""


def _replace(line: list[str]) -> None:
    raise _Replaced(line)


def _run_job(argument: str, log: Path) -> int:
    """Replace ``jobs.run_job`` by a fork of this process."""
    from triptych.run import processes

    line = [sys.executable, "-m", "triptych.cli.train", argument]

    parent = str(os.getpid())
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        environment = {k: v for k, v in os.environ.items() if k not in processes.DISTRIBUTED}
        environment |= {processes.PARENT: parent}
        _begin(line, environment, os.getcwd(), str(log), str(log))
    began = False
    try:
        while not (status := os.waitpid(pid, os.WNOHANG))[0]:
            time.sleep(0.02)
        began = True
    finally:
        if not began:
            os.kill(pid, 15)
            status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status[1])


def _begin(line: list[str], environment: dict[str, str], cwd: str, out: str, err: str) -> None:
    """Run the command in this process, which ends with it."""
    from triptych.cli import startup
    from triptych.run import jobs, stopping

    atexit._clear()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    startup.start()
    references.share()
    jobs.run_job = _run_job
    stopping.subprocess = SimpleNamespace(Popen=_Rank)
    code = 1
    while True:
        try:
            code = _code(line)
            break
        except _Replaced as other:
            line = other.args[0]
    sys.stderr.flush()
    util._run_finalizers()
    atexit._run_exitfuncs()
    os._exit(code)


def _code(line: list[str]) -> int:
    from hydra.core.global_hydra import GlobalHydra

    _, _, name, *arguments = line
    module: Any = import_module(name)
    if hasattr(module, "replace_process"):
        module.replace_process = _replace
    sys.orig_argv, sys.argv = line, [str(module.__file__), *arguments]
    GlobalHydra.instance().clear()
    try:
        return module.main() or 0
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
    except _Replaced:
        raise
    except BaseException:
        traceback.print_exc()
    return 1
