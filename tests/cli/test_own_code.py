"""``examples/mylab`` as a trusted user package beside the clone, with its own configurations."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import triptych
from tests.refusal import refused
from tests.run.accidents import rows
from triptych.config.build import nodes_with_target
from triptych.config.check import CONFIGS
from triptych.config.file import read_config
from triptych.run.untrusted import check_checkpoint

HOUSE = CONFIGS.parent
MYLAB = HOUSE / "examples" / "mylab"
PAGE = HOUSE / "docs" / "own-code.md"
SMALL = (
    "trainer.max_steps=4 trainer.val_check_interval=2 trainer.log_every_n_steps=1 bound.repeats=2 "
    "bound.val_repeats=1 samples.n=4 sampler.steps=3 logger=csv"
).split()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Make one run that uses every kind of class."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_ROOT", str(tmp_path_factory.mktemp("mylab")))
        patch.setenv("TRIPTYCH_TRUST", "mylab")
        patch.syspath_prepend(str(MYLAB.parent))
        return triptych.train(["experiment=bars", *SMALL]).dir


@pytest.fixture
def trusted(trusting):
    """Trust the package in this process, as its owner's environment does."""
    trusting("mylab", folder=MYLAB.parent)


def test_mylab_run_uses_every_kind_of_component(run):
    """All classes but the second network and the metric of samples are used and recorded."""
    named = {
        node["_target_"] for _, node in nodes_with_target(read_config(run / "config.yaml"), "")
    }
    classes = {
        f"mylab.{file.stem}.{name}"
        for file in MYLAB.glob("*.py")
        for name in re.findall(r"^class (\w+)\(", file.read_text(), re.MULTILINE)
    }
    assert classes - named == {
        "mylab.bare.Bare",
        "mylab.brightness.Brightness",
        "mylab.mixer.Block",
    }
    summary = json.loads((run / "summary.json").read_text())
    for split in ("train", "val", "test"):
        figure = summary[split]["psnr"]
        assert 0 < figure["mean"] < 30 and figure["stderr"] > 0 and figure["n"] == 100
    assert summary["metrics"] == {"psnr": "higher"} and (run / summary["samples"]).is_file()
    table = rows(run)
    assert [r["step"] for r in table if r["val/psnr"]] == ["2", "4"] and float(
        table[-1]["test/psnr"]
    ) > 0
    assert [float(r["train/drift"]) > 0 for r in table if r["train/drift"]] == [True] * 4


def test_checkpoint_of_untrusted_package_is_refused(run, monkeypatch, trusted):
    path = str(run / "checkpoints" / "last.ckpt")
    check_checkpoint(path)
    monkeypatch.setenv("TRIPTYCH_TRUST", "")
    refused(
        lambda: check_checkpoint(path),
        "_target_=mylab",
        "class is not allowed in a configuration",
    )


def test_own_code_page_lists_one_or_two_files_per_component():
    """Every file of the package is in one row of the page's table, or belongs to no kind."""
    rows = [
        line
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ") and "`mylab/" in line
    ]
    assert len(rows) == 13
    listed = [re.findall(r"`(mylab/[^`]+)`", row) for row in rows]
    assert all(1 <= len(files) <= 2 for files in listed)
    files = [file for file in MYLAB.rglob("*.*") if file.suffix in (".py", ".yaml")]
    there = {file.relative_to(MYLAB.parent).as_posix() for file in files}
    assert sorted(file for files in listed for file in files) == sorted(
        there - {"mylab/__init__.py"}
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_own_code_page_commands_run_unchanged(root, tmp_path):
    """They run one after another in a folder with ``examples``, as in a clone."""
    (root / "examples").symlink_to(HOUSE / "examples")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    script = "\n".join(["set -euo pipefail", *blocks]).replace(
        "PYTHONPATH=", "PYTHONPATH=$SOURCES:"
    )
    env = os.environ | {"PATH": path, "SOURCES": str(HOUSE / "src")}
    line = ["bash", "-c", script]
    done = subprocess.run(line, cwd=root, env=env, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr
    assert (root / "logs" / "sweeps" / "shares" / "report.html").is_file()
    for name, measured in (("before", False), ("after", True)):
        record = json.loads((root / "logs" / "runs" / name / "summary.json").read_text())
        assert ("psnr" in record["test"]) == measured
