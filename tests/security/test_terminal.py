"""Printed text cannot control the terminal, whatever a directory or its content is called."""

import io
import itertools
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import yaml
from PIL import Image

from tests.conftest import TINY
from tests.security.strangers import configuration, save_checkpoint, save_run
from tests.study.fake_runs import make_run
from triptych.run.directory import RunDirectory
from triptych.study.console import PlainConsole
from triptych.study.monitor import Monitor
from triptych.terminal import escaped_stream, unescaped_stream

# Set the window's title, clear the screen, reverse the text, red, carriage return, a link.
EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\rfine\x1b[8m\x7f[link=x]y[/]"
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
SEQUENCE = re.compile(rb"\x1b(?:\[[0-9;?]*[A-Za-z]|\].*?(?:\x07|\x1b\\)|[^\[\]])|\x9b|\xc2\x9b")


def dressed(value, evil: str):
    """Return ``value`` with ``evil`` at the end of each text, and a further key in each group."""
    if isinstance(value, str):
        return value + evil
    if isinstance(value, list):
        return [dressed(one, evil) for one in value]
    if isinstance(value, dict):
        return {key: dressed(one, evil) for key, one in value.items()} | {
            f"key{evil}": f"value{evil}"
        }
    return value


def hostile(root: Path, evil: str) -> Path:
    """Make a sweep of four settings whose keys and values end in ``evil``, and a failed run."""
    sweep = root / "sweeps" / f"mine{evil}"
    for seed, (objective, own) in enumerate(itertools.product(("v", "x0"), ("a", "b")), 1):
        overrides = [
            f"seed={seed}",
            f"objective={objective}{evil}",
            f"model.key{evil}={objective}{evil}",
        ]
        choices = {
            "objective": objective + evil,
            f"group{evil}": objective + evil,
            "data": f"digits{evil}",
        }
        run = make_run(
            sweep, f"{objective}{evil}{own}", seed, 2.0, overrides=overrides, choices=choices
        )
        config = configuration() | {"seed": seed, f"own{evil}": {f"key{evil}": own + evil}}
        (run / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=False))
        (run / "metrics.csv").write_text(
            f"step,train/loss,val/{evil!r},x{evil}\n0,1,2,3\n".replace("\r", "")
        )
        record = json.loads((run / "summary.json").read_text())
        record |= {
            "name": evil,
            "device": evil,
            "error": "",
            "measures": {f"own{evil}": {"mean": 1.0}},
        }
        (run / "summary.json").write_text(json.dumps(record))
    failed = sweep / f"failed{evil}"
    save_run(failed, configuration())
    record = {
        "schema": 1,
        "status": "failed",
        "error": f"why{evil}",
        "overrides": [f"a{evil}=b{evil}"],
    }
    (failed / "summary.json").write_text(json.dumps(record))
    sweep_record = {
        "title": evil,
        "question": evil,
        "command": f"triptych-train {evil}",
        "expected": 6,
    }
    (sweep / "sweep.json").write_text(
        json.dumps(dressed(sweep_record | {"refused": {"x": "y"}}, evil))
    )
    return sweep


def check_obeys_nothing(text: str) -> None:
    assert text and not OBEYED.findall(text.replace("\r\n", "\n")), text


def on_a_terminal(line: list[str], root: Path) -> bytes:
    """Return what a command writes to a terminal."""
    ours, its = pty.openpty()
    process = subprocess.Popen(line, stdin=its, stdout=its, stderr=its, cwd=root)
    os.close(its)
    written = b""
    while True:
        try:
            written += (part := os.read(ours, 65536))
        except OSError:  # the other end is closed
            part = b""
        if not part:
            process.wait()
            os.close(ours)
            return written


def test_report_of_hostile_sweep_prints_no_control_characters(root, door):
    sweep = hostile(root, EVIL)
    for arguments in ([sweep, "--figures", f"figures{EVIL}"], [root], [sweep / EVIL]):
        done = door("triptych.cli.report", *map(str, arguments))
        assert done.returncode == (arguments == [sweep / EVIL]), done.stderr
        check_obeys_nothing(done.stdout + done.stderr)


def test_commands_on_hostile_run_print_no_control_characters(root, door):
    run = save_run(root / f"run{EVIL}", configuration() | {f"own{EVIL}": EVIL}, "finished")
    save_checkpoint(
        run / "checkpoints" / "last.ckpt", configuration() | {f"own{EVIL}": {EVIL: EVIL}}
    )
    commands = {
        "train": [f"resume={run}"],
        "evaluate": [f"ckpt={run}"],
        "sample": [f"ckpt={run}"],
        "export": [str(run), "to=diffusers", f"out{EVIL}"],
    }
    commands = {name: [words] for name, words in commands.items()}
    commands["train"] += [[f"{key}={run}", "logger=csv"] for key in ("init_from", "trained")]
    commands["train"] += [
        ["-m", f"trained={run}", "name=sweep", "seed=1,2"],
        [f"resume={run}{EVIL}"],
    ]
    for name, lines in commands.items():
        for line in lines:
            done = door(f"triptych.cli.{name}", *line)
            check_obeys_nothing(done.stdout + done.stderr)


def test_hostile_class_folder_names_print_no_control_characters(root, door):
    for name in ("a", f"b{EVIL}".replace("/", "")):
        for i in range(20):
            (root / "images" / name).mkdir(parents=True, exist_ok=True)
            colour = (12 * i, 255 - 12 * i, 9)
            Image.new("RGB", (8, 8), colour).save(
                root / "images" / name / f"{i}{EVIL}.png".replace("/", "")
            )
    data = ["data=folder", f"data.root={root / 'images'}", "data.size=8", "model.conditional=true"]
    data += ["data.val_fraction=0.3", "data.test_fraction=0.3"]
    for line in (data, ["-m", "name=folders", *data]):
        done = door("triptych.cli.train", *line, "logger=csv", *TINY)
        check_obeys_nothing(done.stdout + done.stderr)
    logs = [log.read_bytes().decode() for log in root.rglob("train.log")]
    assert done.returncode == 0 and logs, done.stderr
    for log in logs:
        check_obeys_nothing(log)


def test_terminal_report_of_hostile_sweep_adds_no_escape_sequences(root):
    report = [sys.executable, "-m", "triptych.cli.report"]
    sweeps = {evil: hostile(root / str(len(evil)), evil) for evil in ("", EVIL)}
    written = {evil: on_a_terminal([*report, str(sweep)], root) for evil, sweep in sweeps.items()}
    own = {*SEQUENCE.findall(written[""])}
    assert own and b"owned" in written[EVIL]
    assert {*SEQUENCE.findall(written[EVIL])} <= own
    assert b"\x07" not in written[EVIL] and b"\r" not in written[EVIL].replace(b"\r\n", b"")


def test_monitor_table_of_hostile_cells_adds_no_escape_sequences(tmp_path):
    """Neither cells' names nor progress.json bring control characters or rich's markup."""
    drawn = {}
    for text in ("x", EVIL.replace("/", "")):
        cell = RunDirectory(tmp_path / f"objective={text}")
        progress = {"stage": f"fit{text}", "step": 1, "max_steps": 2, "updated": time.time()}
        cell.path.mkdir()
        cell.write("progress.json", progress)
        console = PlainConsole(io.StringIO(), width=100, force_terminal=True)
        console.print(Monitor(tmp_path, [cell.path.name]).screen(100, 24))
        drawn[text] = console.file.getvalue()
    assert not any(SEQUENCE.findall(text.encode()) for text in drawn.values())
    evil = drawn[EVIL.replace("/", "")]
    assert "owned" in evil and not {"\x07", "\r", "\u202e"} & {*evil}


def test_plain_stream_escapes_control_characters_except_progress_bar():
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    stream = escaped_stream(terminal)
    print("a\rb\x1b[31m", "c\td", file=stream)
    stream.writelines(["\r50%", "\r100%\n"])
    assert terminal.getvalue() == "a\\rb\\x1b[31m c\td\n\r50%\r100%\n"
    assert (
        not stream.isatty()
        and unescaped_stream(stream) is terminal
        and escaped_stream(stream) is stream
    )
