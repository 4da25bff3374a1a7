"""The Python interface: the same checks, records and figures as the commands."""

import copy
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import triptych
from tests.conftest import TINY
from tests.refusal import refused
from triptych import api
from triptych.api import _recompose
from triptych.config.check import CONFIGS
from triptych.config.compose import format_override_value, overrides_between
from triptych.diffusion.bound import Bound
from triptych.diffusion.draws import evaluation_draw
from triptych.errors import Interrupted
from triptych.models.diffusion import Diffusion
from triptych.run.directory import RunDirectory
from triptych.run.parsing import Estimate
from triptych.run.read import Run, read_run
from triptych.run.untrusted import OWN

HOUSE = CONFIGS.parent


def run_blocks(page: Path) -> dict:
    """Run the Python blocks of a page in order; return the names they leave."""
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    return names


def test_python_page_blocks_run_and_match_command(root, inside):
    """The command resumes the page's run: same directory, record and configuration."""
    names = run_blocks(HOUSE / "docs" / "python.md")
    runs = names["runs"]
    assert {row["objective"] for row in runs} == {"v", "epsilon", "x0"}
    assert {type(row["test/bpd"]) for row in runs} == {float}
    folder = Path(root, "logs/runs/first")
    assert names["run"].dir == folder and OWN not in os.environ
    record = RunDirectory(folder).provenance
    assert "trainer.val_check_interval=5" in record.overrides, "what was set by hand is on record"
    assert record.choices["objective"] == "v"
    line = ["name=first", "objective=v", *names["small"], "trainer.val_check_interval=5"]
    done = inside("triptych.cli.train", *line)
    assert done.returncode == 0 and "finished before" in done.stdout, done.stderr


def test_readme_python_block_runs_without_warnings(root, capfd):
    names = run_blocks(HOUSE / "README.md")
    assert names["run"].dir == root / "logs" / "runs" / "demo"
    assert names["images"].shape == (4, 1, 8, 8) and names["nelbo"].total.shape == (8,)
    lines = capfd.readouterr().err.splitlines()
    assert lines and all(line.startswith("step ") for line in lines), lines


def test_importing_costs_no_torch():
    code = (
        "import sys, triptych; assert 'torch' not in sys.modules; assert 'train' in dir(triptych)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert dir(triptych) == ["Trained", "compose", "load", "table", "train"]
    with pytest.raises(AttributeError, match="trian"):
        triptych.trian  # noqa: B018


def test_compose_refuses_malformed_overrides(root):
    assert triptych.compose("objective=v").objective == triptych.compose(["objective=v"]).objective
    for overrides, problem in (
        (
            "objective=v seed=2",
            "objective=v seed=2: must be KEY=VALUE; quote special characters",
        ),
        (
            ["-m", "seed=1,2"],
            "-m: only for the command triptych-train; from Python, pass only KEY=VALUE",
        ),
        (["--cfg=job"], "--cfg=job: only for the command"),
        (["resume=x"], "resume=x: only for the command"),
        *(
            ([one], f"{one}: only for the command")
            for one in ("plan=true", "plan=True", "+plan=true")
        ),
    ):
        assert refused(lambda typed=overrides: triptych.compose(typed)).startswith(problem)
    for wrong in (3, None, ["seed=1", 3], {"seed": 1}):
        refused(
            lambda wrong=wrong: triptych.train(wrong),
            f"overrides={wrong!r}: must be a list, each text",
        )


def test_run_str_is_one_line(tmp_path):
    figures = {"accuracy": Estimate(0.5, 0.01, 300)}
    run = Run(dir=tmp_path / "first", status="finished", test=figures)
    assert str(run).startswith("first: test accuracy 0.5000 ± 0.0100 (") and str(run).endswith(
        "/first)"
    )
    failed = Run(dir=tmp_path / "second", status="failed", error="it rained")
    assert str(failed) == f"second: failed: it rained ({tmp_path}/second)"


def test_trained_bound_matches_bound_formula_of_batch(finished):
    """With the noise of a split's first items, the bound's formula gives the same draws."""
    trained = triptych.load(finished().path)
    x = trained.data.splits["test"].batch(torch.arange(5)).x
    found = trained.bound(x)
    draw = evaluation_draw((1, 8, 8), torch.arange(5), trained.config["seed"], 0, 1)
    with torch.no_grad():
        formula = trained.model.bound(trained.denoiser, x, draw)
    assert found.total.shape == (5,) and torch.isfinite(found.total).all()
    assert torch.allclose(found.prior, formula.prior)
    assert torch.allclose(trained.bound(x.double()).total, found.total)
    for wrong, problem in (
        (lambda: trained.bound(x[0]), "bound(x): x must be a tensor of shape"),
        (lambda: trained.bound(x[:0]), "bound(x): x must be a tensor of shape"),
        (lambda: trained.bound(x / 0), "bound(x): x has values up to nan; pass images in [-1, 1]"),
        (
            lambda: trained.bound(-255 * torch.ones_like(x)),
            "bound(x): x has values up to 255; pass images in",
        ),
        (lambda: trained.bound(0.94 * x), "bound(x): x is not on the data's 17 levels; pass"),
        (lambda: trained.sample(2, "n=3"), "n=3: n is set already"),
        (lambda: trained.sample(2, 3), "overrides=(3,): must be a list, each text"),
        (lambda: trained.sample("two"), "n='two': must be a whole number"),
        (lambda: trained.sample(2, label=[1]), "label=[1]"),
        (lambda: trained.evaluate("test", 3), "overrides=(3,): must be a list, each text"),
        (lambda: trained.evaluate(3), "split=3: must be train, val or test"),
        (lambda: trained.evaluate("split=val"), "split='split=val': must be train, val or test"),
        (lambda: trained.evaluate("val", "split=test"), "split=test: split is set already"),
        (lambda: trained.sample(2, "--n=3"), "--n=3: n is set already"),
        (
            lambda: trained.sample(2, "weights=raw"),
            "weights=raw: only for the command triptych-sample",
        ),
        (
            lambda: trained.evaluate("test", "stepss=3"),
            "stepss=3: no such key; did you mean steps?",
        ),
        (
            lambda: trained.sample(2, "sampler=ddim,heun"),
            "sampler=ddim,heun: several values are given; type one",
        ),
        (
            lambda: trained.evaluate("val", "out=f.json"),
            "out=f.json: only for the command triptych-evaluate",
        ),
    ):
        refused(wrong, problem)


def test_trained_bound_measures_optimal_variance_once(finished, monkeypatch):
    trained, calls = triptych.load(finished("bound.steps=10", "bound.variance=optimal").path), []
    x = trained.data.splits["test"].batch(torch.arange(5)).x
    calibrate = Bound.calibrate
    monkeypatch.setattr(Bound, "calibrate", lambda *a: calls.append(1) or calibrate(*a))
    first, second = trained.bound(x).total, trained.bound(x).total
    assert calls == [1] and torch.isfinite(first).all() and torch.equal(first, second)


def test_sample_and_evaluate_use_typed_threads_or_those_of_run(finished):
    trained = triptych.load(finished().path)
    for work in (trained.sample, lambda _, *more: trained.evaluate("val", "repeats=1", *more)):
        for more, threads in ((["threads=2"], 2), ([], 1)):
            torch.set_num_threads(1)
            work(1, *more)
            assert torch.get_num_threads() == threads
    refused(
        lambda: trained.sample(1, "threads=0"), "threads=0: must be null or a whole number from 1"
    )


def test_sample_moves_model_back_from_gpu(finished, monkeypatch):
    trained, moves = triptych.load(finished().path), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(trained.model, "to", lambda device: moves.append(str(device)))
    trained.sample(2, "trajectory=null")
    assert moves == ["cuda", "cpu"]


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["objectiv=v"], "objectiv=v: no such key; did you mean objective"),
        (["trainer.devices=2"], "trainer.devices=2, num_nodes=1: must be 1 in Python"),
        (["until=decided"], "until=decided"),
        (["trained=/nowhere"], "trained=/nowhere: no run"),
        (
            ["data=ring", "denoiser=mlp", "threshold=static"],
            "threshold: would clip at 1, but the data reach 1.",
        ),
        (["data=ring", "denoiser=mlp", "threshold=dynamic"], "would clip at 1, but the data reach"),
        (["ablation=objectives"], "ablation=objectives: only a sweep compares settings"),
    ],
)
def test_train_refuses_what_triptych_train_refuses(root, overrides, said):
    refused(lambda: triptych.train(["name=no", *overrides]), said)
    assert not (root / "logs").exists()


def test_train_refuses_second_run_in_same_process(root):
    """Two runs would share random numbers."""
    with api._training:
        refused(
            lambda: triptych.train(["name=no"]),
            "another run is training in this process; wait until it ends",
        )
    assert not (root / "logs").exists() and not api._training.locked()


def test_interrupted_train_call_leaves_run_interrupted(root, monkeypatch):
    def interrupt(*_):
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(Diffusion, "loss", interrupt)
    with pytest.raises(Interrupted):
        triptych.train(["name=stopped", *TINY])
    assert read_run(root / "logs/runs/stopped").status == "interrupted"


def test_train_checks_values_set_on_config(root):
    config = triptych.compose(["name=no"])
    assert isinstance(config, DictConfig)
    for key, value, problem in (
        ("optimizer.lr", float("inf"), "optimizer.lr"),
        ("optimizer.lrr", 1.0, "optimizer.lrr"),
        ("sampler", {}, "sampler={}: an empty group changes nothing"),
        ("sampler", None, "the choice of a group must be a name"),
    ):
        wrong = copy.deepcopy(config)
        OmegaConf.update(wrong, key, value, merge=False, force_add=True)
        refused(lambda wrong=wrong: triptych.train(wrong), problem)
    config.trainer.maxsteps = 3
    refused(
        lambda: triptych.train(config),
        "trainer.maxsteps=3: no such key; did you mean trainer.max_steps?",
    )
    refused(
        lambda: triptych.train(OmegaConf.create({"seed": 1})),
        "must be what triptych.compose returned",
    )
    assert not (root / "logs").exists()


def test_config_value_with_backslash_is_kept():
    config = triptych.compose()
    config.setting = r"C:\it's\new"
    assert _recompose(config).setting == config.setting


def test_config_accepts_group_set_to_class():
    config = triptych.compose()
    config.condition_from = {"label": "/nowhere"}
    config.threshold = {"_target_": "triptych.diffusion.wrappers.StaticThreshold", "bound": 2.0}
    config.sampler = {"_target_": "triptych.diffusion.sampler.DDIM", "steps": 7}
    settled = _recompose(config)
    for group in ("condition_from", "threshold", "sampler"):
        assert all(settled[group][key] == value for key, value in config[group].items())


VALUES = [None, True, 3, -1.5e-7, "a b'c,=[", r"a\b\'c\\", [1, [2.0, "x\\y"]], {"a": {"b": None}}]


@pytest.mark.parametrize("value", VALUES)
def test_edits_are_valid_hydra_overrides(value):
    [line] = overrides_between({"a": {"b": "was"}}, {"a": {"b": value}})
    assert OverridesParser.create().parse_override(line).value() == value
    found = overrides_between({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": value}})
    assert list(found) == ["~a.c", f"+a.d={format_override_value(value)}"]


def test_load_and_table_refuse_invalid_paths(tmp_path):
    none = tmp_path / "none.ckpt"
    refused(
        lambda: triptych.load(tmp_path),
        "no such file; pass a run's directory or a checkpoint in it",
    )
    refused(
        lambda: triptych.load(none), "no such file; pass a run's directory or a checkpoint in it"
    )
    refused(lambda: triptych.table(none), "no such directory")
    said = refused(lambda: triptych.load(tmp_path / "a\nb\x1b[31m"), r"a b\x1b[31m: no such file")
    assert "\x1b" not in said
    refused(lambda: triptych.table(tmp_path), "no run in it")


def test_reported_checkpoint_of_run_directory(prepared):
    """A summary names one of two files; any other checkpoint is refused."""
    run = prepared()
    assert run.reported_checkpoint() == run / "checkpoints" / "last.ckpt"
    summary = {"schema": 1, "status": "finished"}
    run.write("summary.json", summary | {"checkpoint": "checkpoints/best.ckpt"})
    assert run.reported_checkpoint() == run / "checkpoints" / "best.ckpt"
    run.write("summary.json", summary | {"checkpoint": "../../other/last.ckpt"})
    refused(lambda: triptych.load(run.path), "checkpoint '../../other/last.ckpt'")


def test_compose_reads_edited_config_file_again(root):
    """A notebook may edit a file between two cells."""
    file = root / "configs" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    for steps in (111, 222):
        file.write_text(f"# @package _global_\ntrainer:\n  max_steps: {steps}\n")
        config = triptych.compose([f"hydra.searchpath=[file://{root}/configs]", "experiment=mine"])
        assert config.trainer.max_steps == steps


def test_config_keeps_hydra_values_and_refuses_invalid_keys(root):
    config = triptych.compose("name=a")
    config.hydra.run.dir = str(root / "mine")
    assert _recompose(config).hydra.run.dir == str(root / "mine")
    typed_so = triptych.compose(["name=a", f"hydra.run.dir={root / 'mine'}"])
    assert _recompose(typed_so).hydra.run.dir == str(root / "mine")
    for key, words in (
        (5, "+5=1: must be KEY=VALUE"),
        ("", "must be a name"),
        ("a\x1bb", "a\\x1bb=1: must"),
    ):
        config = triptych.compose()
        config[key] = 1
        refused(lambda config=config: _recompose(config), words)
    refused(lambda: triptych.compose([" "]), "must be KEY=VALUE")
