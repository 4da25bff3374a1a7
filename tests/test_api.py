"""From Python: the same checks, records and figures as the commands have."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

import triptych
from triptych.config.check import CONFIGS
from triptych.config.compose import edits, typed
from triptych.diffusion.draws import evaluation_draw
from triptych.errors import UserError
from triptych.run.directory import RunDirectory
from triptych.run.read import Run
from triptych.run.result import Estimate
from triptych.run.untrusted import OWN

PAGE = CONFIGS.parent / "docs" / "python.md"


def test_the_page_runs(root):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) > 6
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    runs = names["runs"]
    rows = runs if isinstance(runs, list) else runs.to_dict("records")
    assert {row["objective"] for row in rows} == {"v", "epsilon", "x0"}
    assert {type(row["test/bpd"]) for row in rows} == {float}
    folder = Path(root, "logs/runs/first")
    assert names["run"].dir == folder and OWN not in os.environ
    record = RunDirectory(folder).provenance()
    assert "trainer.val_check_interval=5" in record["overrides"], "what was set by hand is on record"
    assert record["choices"]["objective"] == "v"


def test_a_run_of_python_is_the_commands(root, tiny, door):
    """Either goes on with the other's: the same directory, the same record, the same configuration."""
    config = triptych.compose(["name=one", *tiny, "logger=csv"])
    config.optimizer.lr = 0.003
    triptych.train(config)
    line = ["name=one", *tiny, "logger=csv", "optimizer.lr=0.003"]
    done = door("triptych.cli.train", *line)
    assert done.returncode == 0 and "finished before" in done.stdout, done.stderr
    theirs = door("triptych.cli.train", *line[1:], "name=two")
    assert theirs.returncode == 0, theirs.stderr
    one, two = (RunDirectory(root / "logs" / "runs" / name) for name in ("one", "two"))
    assert one.config() | {"name": "two"} == two.config()
    assert one.summary()["test"] == two.summary()["test"]


def test_importing_costs_no_torch():
    code = "import sys, triptych; assert 'torch' not in sys.modules; assert 'train' in dir(triptych)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="trian"):
        triptych.trian  # noqa: B018


def test_dir_is_the_api():
    assert dir(triptych) == ["Trained", "compose", "load", "table", "train"]


def test_a_text_is_one_override(root):
    assert triptych.compose("objective=v").objective == triptych.compose(["objective=v"]).objective
    with pytest.raises(UserError, match=r"^overrides: 3 is no text"):
        triptych.compose([3])


def test_a_run_is_five_lines(tmp_path):
    run = Run(
        dir=tmp_path / "first",
        status="finished",
        overrides={"objective": "v", "name": "first"},
        test={"bpd": Estimate(2.34567, 0.0123, 300)},
        steps=1200,
        parameters=12345,
        seconds={"fit": 61.2, "test": 5.0},
        device="cpu",
    )
    assert str(run).splitlines() == [
        "first: finished",
        "settings: objective=v",
        "result: 2.3457 ± 0.0123 bits/dim on 300 test items",
        "took: 1200 steps, 12345 parameters, fit 61 s, test 5 s, cpu",
        f"directory: {tmp_path}/first",
    ]
    failed = Run(dir=tmp_path / "second", status="failed", error="line one\nline two")
    assert len(str(failed).splitlines()) == 5 and "line one line two" in str(failed)


def test_the_bound_of_a_batch(root, tiny):
    """With the noise of the first items of a split: the bound's own formula on the same draws."""
    trained = triptych.load(triptych.train(["name=one", *tiny, "logger=csv"]))
    x = trained.data.splits["test"].batch(torch.arange(5)).x
    found = trained.bound(x)
    draw = evaluation_draw((1, 8, 8), torch.arange(5), trained.config["seed"], 0, 1)
    with torch.no_grad():
        formula = trained.bound(trained.denoiser, x, draw)
    assert found.total.shape == (5,) and torch.isfinite(found.total).all()
    assert torch.allclose(found.prior, formula.prior)
    for wrong in (3, x[0], x[:, :, :4]):
        with pytest.raises(UserError, match=r"^bound\(x\): x is .*; pass a tensor of shape"):
            trained.bound(wrong)


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["objectiv=v"], "objectiv=v: no such key, did you mean objective"),
        (["optimizer.lr=-1"], "optimizer.lr=-1"),
        (["objective=w"], "objective=w: no such file"),
        (["trainer.devices=2"], "trainer.devices=2, num_nodes=1: one process is accepted from Python"),
        (["until=decided"], "until=decided"),
        (["trained=/nowhere"], "trained=/nowhere: no run"),
        (["guidance=classifier"], "guide=null: this guidance needs a checkpoint"),
        (["guide=/nowhere.ckpt"], "guide=/nowhere.ckpt: no such file"),
        (["ablation=objectives"], "ablation=objectives: settings to compare are a sweep's"),
    ],
)
def test_what_a_command_refuses_is_refused(root, overrides, said):
    with pytest.raises(UserError, match=re.escape(said)):
        triptych.train(["name=no", *overrides])
    assert not (root / "logs").exists()


def test_values_set_by_hand_are_checked(root):
    config = triptych.compose(["name=no"])
    config.optimizer.lr = float("inf")
    with pytest.raises(UserError, match="optimizer.lr"):
        triptych.train(config)
    config = triptych.compose(["name=no"])
    with open_dict(config):
        config.optimizer.lrr = 1.0
    with pytest.raises(UserError, match="optimizer.lrr"):
        triptych.train(config)
    with pytest.raises(UserError, match="one that triptych.compose made"):
        triptych.train(OmegaConf.create({"seed": 1}))
    assert isinstance(config, DictConfig) and not (root / "logs").exists()


@pytest.mark.parametrize("value", [None, True, 3, -1.5e-7, "a b'c,=[", [1, [2.0, "x"]], {"a": {"b": None}}])
def test_edits_are_what_hydra_reads(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    [line] = edits({"a": {"b": "was"}}, {"a": {"b": value}})
    assert OverridesParser.create().parse_override(line).value() == value
    assert list(edits({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": value}})) == [
        "~a.c",
        f"+a.d={typed(value)}",
    ]


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(UserError, match="no such file; a run's directory or a checkpoint in it"):
        triptych.load(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        triptych.table(tmp_path / "none")
    with pytest.raises(UserError, match="no run in it"):
        triptych.table(tmp_path)


def test_a_directory_is_its_reported_checkpoint(prepared):
    """A summary names one of two files; any other is refused, whoever wrote it."""
    run = prepared()
    assert run.reported() == run / "checkpoints" / "last.ckpt"
    run.write("summary.json", {"schema": 1, "status": "finished", "checkpoint": "checkpoints/best.ckpt"})
    assert run.reported() == run / "checkpoints" / "best.ckpt"
    run.write("summary.json", {"schema": 1, "status": "finished", "checkpoint": "../../other/last.ckpt"})
    with pytest.raises(UserError, match="checkpoint '../../other/last.ckpt'"):
        triptych.load(run.path)
