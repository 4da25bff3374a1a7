"""The runs of a sweep are forks of one process.

Each has its own arguments, log, environment and exit code.
"""

import os
import signal
import subprocess
import sys

import pytest

from tests.run.commands import wait_for
from triptych.run import jobs
from triptych.run.untrusted import OWN


def worker(log) -> list[str]:
    """Start a worker in a process, which waits for a job."""
    code = "from pathlib import Path; from triptych.run import jobs; "
    code += f"jobs.PROGRAM = {jobs.PROGRAM!r}; jobs.run_job('a', Path({str(log)!r}))"
    return [sys.executable, "-c", code]


@pytest.fixture
def program(tmp_path, monkeypatch):
    """``program(code)``: a command that replaces triptych-train, and whose jobs run ``code``."""

    def write(code: str) -> None:
        begin = (
            "import os, sys, time\nfrom triptych.run import jobs\njobs.IMPORTS = ()\njobs.serve()\n"
        )
        (tmp_path / "program.py").write_text(begin + code)
        monkeypatch.setattr(
            jobs, "PROGRAM", [sys.executable, str(tmp_path / "program.py"), jobs.SERVE]
        )

    monkeypatch.setattr(jobs, "_servers", [])
    yield write
    for server in jobs._servers:
        server.process.stdin.close()
        assert server.process.wait(10) is not None, "it ends with its input"


def test_job_has_own_arguments_log_environment_and_exit_code(program, tmp_path, monkeypatch):
    environ = "os.environ['MINE'], os.environ.get('RANK')"
    program(f"print(os.getppid(), sys.argv[1], {environ}); sys.exit(int(sys.argv[1]))")
    for code in (0, 3):
        monkeypatch.setenv("MINE", f"of {code}")
        monkeypatch.setenv("RANK", "1")
        assert jobs.run_job(str(code), tmp_path / f"{code}.log") == code
    (server,) = jobs._servers
    for code in (0, 3):
        assert (
            tmp_path / f"{code}.log"
        ).read_text() == f"{server.process.pid} {code} of {code} None\n"


def test_job_server_imports_logger_libraries_once(program, tmp_path, monkeypatch):
    program("print(len(seen), seen[0])")
    file = tmp_path / "program.py"
    stub = "import types\nseen = []\nsys.modules['triptych.run.loggers'] = types.SimpleNamespace(\n"
    stub += "    import_libraries=lambda run: seen.append(run.path.name))\n"
    file.write_text(file.read_text().replace("jobs.serve()", stub + "jobs.serve()"))
    for name in ("first", "second"):
        monkeypatch.setenv(OWN, str(tmp_path / name))
        assert jobs.run_job(name, tmp_path / name) == 0
        assert (tmp_path / name).read_text() == "1 first\n"


def test_killed_job_returns_signal_and_next_job_runs(program, tmp_path):
    program("os.kill(os.getpid(), 9) if sys.argv[1] == 'kill' else print('done')")
    assert jobs.run_job("kill", tmp_path / "log") == -signal.SIGKILL
    assert jobs.run_job("end", tmp_path / "log") == 0


def test_sigusr1_to_job_server_is_ignored(program, tmp_path):
    code = "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))\n"
    program(code + "os.kill(os.getppid(), signal.SIGUSR1)\nos.kill(os.getpid(), signal.SIGUSR1)")
    assert [jobs.run_job("a", tmp_path / "log") for _ in range(2)] == [7, 7]
    assert jobs._servers[0].process.poll() is None


def test_job_with_killed_server_returns_sigkill(program, tmp_path):
    program("os.kill(os.getppid(), 9)")
    assert jobs.run_job("a", tmp_path / "log") == -signal.SIGKILL
    program("print('done')")
    assert jobs.run_job("b", tmp_path / "log") == 0


def test_interrupted_worker_passes_sigint_to_job_and_waits(program, tmp_path):
    """The worker forwards Ctrl-C's signal, and the job's last line names it."""
    program(
        "import signal\n"
        "def stop(*_):\n    time.sleep(0.5)\n    print('saved', flush=True)\n    sys.exit(5)\n"
        "signal.signal(signal.SIGINT, stop)\nprint('began', flush=True)\ntime.sleep(60)"
    )
    log = tmp_path / "log"
    process = subprocess.Popen(worker(log), stderr=subprocess.DEVNULL)
    wait_for(lambda: log.exists() and "began" in log.read_text(), process)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(20) != 0 and log.read_text() == "began\nsaved\n"


def test_job_started_during_interruption_is_stopped_and_awaited(program, tmp_path, monkeypatch):
    program("time.sleep(60)")
    stop = "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('saved') or sys.exit(5))\n"
    (tmp_path / "program.py").write_text(stop + (tmp_path / "program.py").read_text())
    answer = jobs.ForkServer._read_answer

    def interrupted(server, look):
        monkeypatch.setattr(jobs.ForkServer, "_read_answer", answer)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.ForkServer, "_read_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jobs.run_job("a", tmp_path / "log")
    assert (tmp_path / "log").read_text() == "saved\n"


def test_job_server_ends_with_killed_worker(program, tmp_path):
    program("time.sleep(60)")
    slow = (
        (tmp_path / "program.py").read_text().replace("jobs.serve()", "time.sleep(2)\njobs.serve()")
    )
    (tmp_path / "program.py").write_text(slow)
    process = subprocess.Popen(worker(tmp_path / "log"))
    wait_for(lambda: at_work(tmp_path), process)
    process.kill()
    process.wait()
    wait_for(lambda: not at_work(tmp_path), None, 10)


def at_work(folder) -> list[str]:
    listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True).stdout
    return [
        line for line in listed.splitlines() if line.endswith(f"{folder}/program.py {jobs.SERVE}")
    ]
