"""A command as a process: its imports, its end by a signal, and its output streams."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import TINY
from tests.run.hooks import site, traps
from tests.security.strangers import save_checkpoint
from tests.study.fake_runs import metrics

SAFE = [
    sys.executable,
    "-P",
    "-m",
]  # as the console script: without the folder in which it is typed
SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP}
HOOK = """
import os, signal, sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and ("resume=" in str(sys.orig_argv)) == {child}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Hook())
"""


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def command(name: str, *arguments: str) -> list[str]:
    return [*SAFE, f"triptych.cli.{name}", *arguments]


def run(line: list[str], env: dict[str, str] | None = None, **more) -> subprocess.CompletedProcess:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 280}
    return subprocess.run(line, env=os.environ | (env or {}), **(streams | more))


@pytest.mark.slow
def test_no_code_of_the_current_folder_is_imported(root):
    """Workers of a launcher, a sweep's job and Lightning's processes; runs are in test_doors."""
    here, sweep = traps(root / "here"), ["-m", "name=mine", "seed=1", "hydra/launcher=joblib"]
    several = ["trainer=ddp_sim", "trainer.devices=2", "data=ring", "denoiser=mlp", "logger=csv"]
    done = run(command("train", *sweep, *several, *TINY), cwd=here)
    assert not (here / "imported").exists() and done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name, kind, module, child",
    [  # a module that is being imported at the moment of the signal, from the first to the last
        ("train", "INT", "hydra", False),
        slow("train", "TERM", "omegaconf.grammar_parser", False),
        slow("train", "HUP", "triptych.config.check", False),
        slow("train", "INT", "hydra._internal.config_loader_impl", False),
        slow("train", "TERM", "triptych.run.single", False),
        ("train", "HUP", "getpass", False),  # the run's directory is there
        slow("train", "INT", "hydra", True),
        slow("train", "TERM", "triptych.run.untrusted", True),
        slow("train", "INT", "numpy", True),
        ("train", "HUP", "torch.nn", True),
        slow("train", "INT", "pytorch_lightning.callbacks", True),
        slow("train", "TERM", "triptych.run.execute", True),
        ("sample", "TERM", "triptych.run.untrusted", False),
        slow("evaluate", "HUP", "hydra", False),
        ("report", "INT", "argparse", False),
        slow("report", "TERM", "matplotlib", False),
    ],
)
def test_signal_during_import_ends_command_with_one_line(root, name, kind, module, child):
    number = SIGNALS[kind]
    hooked = site(root, HOOK.format(module=module, child=child, number=int(number)))
    (root / "run").mkdir()
    (root / "run" / "summary.json").write_text('{"status": "failed", "error": "it rained"}')
    arguments = {"train": ["name=mine", "logger=csv", *TINY], "report": [str(root / "run")]}
    line = command(name, *arguments.get(name, [f"ckpt={root}/x"]))
    done = run(line, hooked, cwd=root)
    assert (
        done.stderr == f"interrupted (SIG{kind}); repeat the same command to resume\n"
        and done.stdout == ""
    )
    assert done.returncode == 128 + number


def test_signal_during_exec_ends_command_with_one_line(root):
    """Python itself, when it starts the run's process, would answer a signal with a traceback."""
    code = (
        "import os, signal, sys\nif 'resume=' in str(sys.orig_argv): os.kill(os.getpid(), "
        "signal.SIGINT)"
    )
    done = run(command("train", "name=mine", "logger=csv", *TINY), site(root, code), cwd=root)
    assert done.returncode == 130 and len(done.stderr.splitlines()) == 1, done.stderr


def test_signal_during_interpreter_shutdown_is_ignored(root):
    """The signal comes while Python shuts down, which takes a second with torch."""
    code = (
        "import os; from triptych.cli import startup; startup.start()\n"
        "class Last:\n def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, 2)\n"
        "last = Last()"
    )
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0 and done.stderr == ""


def test_nohup_command_ignores_sighup(root):
    hooked = site(root, HOOK.format(module="yaml", child=False, number=int(signal.SIGHUP)))
    done = run(["nohup", *command("train", "--cfg", "job")], hooked)
    assert done.returncode == 0 and "objective:" in done.stdout, done.stderr


def finished(prepared) -> list[list[str]]:
    """Start each command that prints something, all at once, and return their lines."""
    run = prepared(path="mine")
    save_checkpoint(run / "checkpoints" / "last.ckpt", run.config())
    run.write("summary.json", {"schema": 1, "status": "finished", "test": metrics(2.0)})
    return [
        command("train", f"resume={run.path}"),
        command("evaluate", "--help"),
        command("report", str(run.path)),
    ]


def test_full_stdout_ends_command_with_one_line(prepared):
    for line in finished(prepared):
        with open("/dev/full", "w") as full:
            done = run(line, stdout=full)
        assert done.returncode == 74, (line, done.stderr)
        assert (
            done.stderr == "error: standard output: cannot be written (No space left on device)\n"
        )


def test_closed_or_ascii_stdout_does_not_fail_command(prepared):
    """A reader that has closed the pipe (``| head``), an encoding without ±, no standard output."""
    line = finished(prepared)[0]
    reader, writer = os.pipe()
    os.close(reader)
    gone = run(line, stdout=writer)
    os.close(writer)
    ascii_alone = run(line, {"PYTHONIOENCODING": "ascii"})
    closed = run(["sh", "-c", '"$@" >&-', "sh", *line], stdout=None)
    for done in (gone, ascii_alone, closed):
        assert done.returncode == 0 and done.stderr == "", done
    assert ascii_alone.stdout


def test_stale_rank_variables_are_removed_at_startup():
    """It would wait for a first process that nobody has started, and end without a message."""
    code = "import os; print([os.environ.get(name) for name in ('RANK', 'LOCAL_RANK')])"
    ours = f"from triptych.cli.startup import start; start(); {code}"
    known = {
        key: value for key, value in os.environ.items() if not key.startswith("TRIPTYCH_STARTED")
    }
    for more, ranks in (
        ({}, [None, None]),
        ({"TORCHELASTIC_RUN_ID": "none"}, ["1", "1"]),
        ({"TRIPTYCH_STARTED": "1"}, ["1", "1"]),  # by Lightning, for one of us
    ):
        line, env = [sys.executable, "-c", ours], known | {"RANK": "1", "LOCAL_RANK": "1"} | more
        assert subprocess.run(line, env=env, capture_output=True, text=True).stdout.strip() == str(
            ranks
        )
