"""Folders whose names mean something to Hydra, to a shell or to a page."""

import json

import pytest

from tests import forked
from tests.run.commands import command, environment
from triptych.run.read import find_runs

NAME = """it's 50% [a] "b", {c}=d; $e #f\\g ~é漢"""


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_sweep_in_a_folder_of_any_name(root, launcher):
    place = root / NAME
    line = command("-m", "name=s", "seed=1", f"hydra/launcher={launcher}")
    done = forked.run(line, environment(place))
    assert done.returncode == 0, done.stderr
    [run] = find_runs(place / "logs" / "sweeps")
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert (run.parent / "report.html").is_file() and run.parent.name.startswith("s")


def test_a_reference_in_a_folders_name_is_refused(root):
    place = root / "${a}"
    for more in ("-m", "name=s"):
        done = forked.run(command("seed=1", more), environment(place))
        assert done.returncode == 1 and not place.exists()
        assert done.stderr.startswith(f"error: TRIPTYCH_ROOT={place}: ") and done.stderr.count("\n") == 1
