"""The scripts for the pages' tables and pictures run as their docstrings say."""

import json
import subprocess
import sys
from runpy import run_path

import pytest

from tests.study.fake_runs import sweep
from triptych.config.check import CONFIGS

DOCS = CONFIGS.parent / "docs"
# These need runs that have ended.
OF_A_SWEEP = {
    "panel", "measures_panel", "samples", "cascade_distance", "comparison", "record_figures",
}  # fmt: skip
READ = {"sde"}  # not a script: formulas that a page shows
SCRIPTS = sorted(path.stem for path in DOCS.glob("*.py") if path.stem not in OF_A_SWEEP | READ)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_documentation_script_runs(tmp_path, name):
    picture = tmp_path / "picture.png"  # where one is drawn; the others look at no argument
    line = [sys.executable, DOCS / f"{name}.py", picture]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or picture.stat().st_size > 1000


def test_panel_script_writes_report_figure(tmp_path):
    root, picture = sweep(tmp_path / "it", {"v": 2.09, "x0": 2.45}), tmp_path / "picture.png"
    run_path(str(DOCS / "panel.py"))["main"](str(root), "forest", str(picture))
    assert picture.stat().st_size > 1000


def test_comparison_script_records_the_printed_rows(tmp_path, capsys):
    root, file = sweep(tmp_path / "it", {"v": 2.09, "x0": 2.45}), tmp_path / "record.json"
    script = run_path(str(DOCS / "comparison.py"))
    script["main"](str(file), str(root))
    settings = json.loads(file.read_text())["settings"]
    assert list(settings) == ["v", "x0"]
    printed = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in printed]
    assert cells == [script["table_cells"](figures) for figures in settings.values()]


def test_figures_of_runs_are_recorded_by_setting_and_seed(tmp_path):
    root, file = sweep(tmp_path / "it", {"v": 2.09, "x0": 2.45}), tmp_path / "record.json"
    run_path(str(DOCS / "record_figures.py"))["main"](str(file), str(root), "val.bpd.mean")
    record = json.loads(file.read_text())
    summary = json.loads((root / "objective=x0,seed=2" / "summary.json").read_text())
    assert record["seeds"] == [1, 2, 3] and [*record["settings"]] == ["v", "x0"]
    shown = record["settings"]["x0"]["val.bpd.mean"]
    assert shown[1] == summary["val"]["bpd"]["mean"]
