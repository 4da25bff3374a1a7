"""``make papers``, killed midway and typed again: what is finished stays, the page is of all."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.run.commands import environment, wait_for
from triptych.config.check import CONFIGS

PAPERS = ("edm_heun", "ncsn_langevin")


def summaries(root) -> dict[str, int]:
    """{run: time of writing}"""
    found = (root / "logs" / "sweeps").glob("*/*/summary.json")
    return {f"{path.parent.parent.name}/{path.parent.name}": path.stat().st_mtime_ns for path in found}


def start(root) -> subprocess.Popen:
    """The rule of the Makefile itself, in a process group of its own; the commands are this Python's."""
    makefile = CONFIGS.parent / "Makefile"
    line = [
        "make",
        "-f",
        str(makefile),
        "-o",
        "install",
        f"BIN={root}/bin",
        f"PAPERS={' '.join(PAPERS)}",
        "papers",
    ]
    log = open(root / "output", "ab")
    more = {"TRIPTYCH_ROOT": str(root)}
    return subprocess.Popen(
        line, cwd=root, stdout=log, stderr=log, env=environment(root, **more), start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_papers_killed_midway_go_on_with_what_is_missing(root):
    (root / "configs").symlink_to(CONFIGS)
    (root / "docs").mkdir()
    (root / "bin").mkdir()
    for command, module in (("triptych-train", "train"), ("triptych-report", "report")):
        script = root / "bin" / command
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m triptych.cli.{module} "$@"\n')
        script.chmod(0o755)
    process = start(root)
    wait_for(lambda: len(summaries(root)) >= 3, process, 1200)
    time.sleep(0.5)  # another one is under way
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(4.0)  # nobody is left at work soon after
    finished = summaries(root)
    assert 3 <= len(finished) < 14 and not (root / "docs" / "results.md").exists()
    again = start(root)
    assert again.wait(2400) == 0, (root / "output").read_text()
    found = summaries(root)
    assert len(found) == 14, "six runs and eight"
    assert {run: found[run] for run in finished} == finished, "none was computed twice"
    page = (root / "docs" / "results.md").read_text()
    assert all(f"\n## {name}\n" in page.replace("\\_", "_") for name in PAPERS)
    assert page.count("reproduced**") + page.count("contradicted**") >= 2
