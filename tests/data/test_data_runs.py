"""Runs say what their data are, and are refused before they have a directory."""

import os

from triptych.run.execute import execute
from triptych.run.read import read_run
from triptych.study.details import _provenance

from .test_source import tree


def test_a_run_says_and_records_its_data(root, prepared, capsys):
    tree(root / "pets", train={"cat": 9, "dog": 9}, val={"cat": 2, "dog": 2}, test={"cat": 3, "dog": 3})
    os.link(root / "pets/train/cat/0.png", root / "pets/test/cat/copy.png")
    line = "folder, 2 classes (cat, dog), 8x8x3, 18 train / 4 val / 7 test"
    run = prepared("data=folder", f"data.root={root / 'pets'}", "data.size=8", "data.batch_size=4")
    summary = execute(run)
    said = capsys.readouterr()
    assert f"data: {line}\n" in said.out
    leak = "data: 1 of the 7 test items are identical to items in train (leakage)"
    assert leak in said.err and leak in (run / "train.log").read_text()
    data = summary["data"]
    assert data["description"] == line and data["classes"] == ["cat", "dog"] and data["shared"] == {"test": 1}
    shown = dict(_provenance(read_run(run.path), run.provenance()))
    assert shown["data"] == f"{line}; 1 test items are also in train"
