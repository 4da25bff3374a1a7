"""The scripts behind the pages' tables and pictures run as their first lines say."""

import subprocess
import sys

import pytest

from triptych.config.check import CONFIGS

DOCS = CONFIGS.parent / "docs"
OF_A_SWEEP = {"panel", "measures_panel", "samples"}  # need one that has been run
SCRIPTS = sorted(path.stem for path in DOCS.glob("*.py") if path.stem not in OF_A_SWEEP)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_pages_script_runs(tmp_path, name):
    picture = tmp_path / "picture.png"  # where one is drawn; the others look at no argument
    done = subprocess.run(
        [sys.executable, DOCS / f"{name}.py", picture], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or picture.stat().st_size > 1000
