"""Whether a directory holds the same run or another, by its record and the command's settings."""

import contextlib
import json
import os
from unittest import mock

import pytest
from omegaconf import OmegaConf

from tests.refusal import refused
from triptych.config.check import CONFIGS
from triptych.config.compose import compose_command
from triptych.config.identity import NOT_IN_NAMES, flatten_config, register_resolvers
from triptych.config.keys import Key, declared_fields, keys_with_roles
from triptych.config.schema import Train
from triptych.errors import StorageError, UserError
from triptych.run import prepare as module
from triptych.run.directory import NEXT_CONFIG, RunDirectory
from triptych.run.prepare import plan_run
from triptych.run.request import resolve
from triptych.run.result import Result


def without(run, *keys: str) -> None:
    """Remove keys, as if the record were older than they are."""
    config = run.config()
    for key in keys:
        *parents, name = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        del node[name]
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))


@pytest.mark.parametrize("new", "bound.variance checkpoint measures data.seed".split())
def test_recorded_run_accepts_key_added_later_at_default(prepared, new):
    run = prepared("seed=5")  # data.seed is ${seed}: its default is what is written, not a number
    without(run, new)
    assert prepared("seed=5").path == run.path


@pytest.mark.parametrize(
    "typed", "bound.variance=optimal data.seed=7 likelihood=ode_images".split()
)
def test_recorded_run_refuses_key_added_later_at_other_value(prepared, typed):
    run = prepared()
    key = typed.split("=")[0]
    without(run, key)
    with pytest.raises(UserError, match=f"holds another run .*{key}.*: none -> "):
        prepared(typed)


def test_recorded_run_refuses_removed_key_or_changed_default(prepared):
    run = prepared()
    config = run.config()
    config["bound"]["former"] = 3
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    refused(lambda: prepared(), "(bound.former: 3 -> none)")
    config["bound"].pop("former")
    config["trainer"]["gradient_clip_val"] = 1.0  # what was the default then
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    refused(lambda: prepared(), "(trainer.gradient_clip_val: 1.0 -> None)")


def test_sweep_typed_again_accepts_relative_init_from(finished, prepared, tiny):
    """A run records an absolute path; the plan of a sweep compares it with what is typed."""
    begin = f"init_from={os.path.relpath(finished().path)}"
    run = prepared(begin, path="begun")
    typed = compose_command("train", [*tiny, "callbacks.ema.others=[]", "logger=csv", begin])
    assert plan_run(resolve(typed, run.path)).conflicts == {}


def test_recorded_run_accepts_old_optimized_metric(prepared):
    run = prepared()
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("val.bound.mean", "val.bpd.mean")
    )
    assert run.config()["optimized_metric"] == "val.bpd.mean" and prepared().path == run.path


def test_resume_accepts_other_threads_and_devices(prepared, finished, capsys):
    """A finished run is found, too, whatever machine it ran on."""
    run = prepared()
    run.write("config.yaml", run.config() | {"threads": 3})
    again = prepared("trainer.devices=2").config()
    assert "continues with threads: 3 -> 1; trainer.devices: 1 -> 2" in capsys.readouterr().err
    assert (again["threads"], again["trainer"]["devices"]) == (1, 2)
    with pytest.raises(UserError, match=r"holds another run \(trainer.max_steps: 6 -> 7\)"):
        prepared("threads=2", "trainer.max_steps=7")
    finished(path="ended")
    for more in ("compile=true", "trainer=ddp_sim", "threads=2"):
        assert prepared(more, path="ended").config()["threads"] == 1


def test_changed_settings_are_not_recorded_in_run_that_finishes_meanwhile(
    prepared, finished, monkeypatch
):
    """This command waits for the lock of the one that finishes the run."""
    run, result = prepared(path="begun"), finished().path / "summary.json"
    real = RunDirectory.lock

    @contextlib.contextmanager
    def finish_and_lock(self, timeout=0.0):
        with real(self, timeout):
            self.record(Result.from_json(json.loads(result.read_text())))
            yield

    monkeypatch.setattr(RunDirectory, "lock", finish_and_lock)
    before = run.config()
    assert prepared("threads=7", path="begun").status == "finished"
    assert run.config() == before and not (run / NEXT_CONFIG).exists()


def test_finished_run_with_more_steps_suggests_init_from(finished, prepared):
    run = finished(path="ended")
    begin = f"init_from={run.path}"
    refused(
        lambda: prepared("trainer.max_steps=7", path="ended"),
        f"another name, with {begin} to begin",
    )
    assert prepared("trainer.max_steps=7", begin, path="more").config()["init_from"] == str(
        run.path
    )
    with pytest.raises(UserError) as other:
        prepared("trainer.max_steps=7", "seed=2", path="ended")
    assert str(other.value).endswith("; choose another name, or force=true to start over")


def test_override_dirname_excludes_execution_keys(prepared):
    register_resolvers()
    config = OmegaConf.load(CONFIGS / "hydra" / "default.yaml")
    excluded = set(config.job.config.override_dirname.exclude_keys)
    assert excluded == set(keys_with_roles(*NOT_IN_NAMES)) - {
        "seed",
        "experiment",
    }  # these tell cells apart
    assert {"name", "ablation", "force", "retry", "until", "paths.log_dir"} <= excluded


def test_every_declared_key_exists_in_configurations(prepared):
    """Any other key would be a spelling mistake, or an old name."""
    known = {
        "tags",
        "hydra",
        "ablation",
        "paper",
        "experiment",
        "hparams_search",
        "local",
        "resume",
    }
    known |= set(OmegaConf.load(CONFIGS / "train.yaml"))
    config = prepared("optimizer.weight_decay=0.1", csv=False).config()
    found = {key for key, _ in flatten_config(config)}
    for key, kind in declared_fields(Train).items():
        assert key in known or any(k == key or k.startswith(f"{key}.") for k in found), key
        inner = Key().nested(kind)
        if inner.base.startswith(("pytorch_lightning", "torch")):
            continue  # what may be said to classes of others, more than our files say
        for name in declared_fields(kind):
            declared = f"{key}.{name}"
            there = any(k == declared or k.startswith(f"{declared}.") for k in found)
            assert there or key in ("likelihood", "model", "logger", "paper"), declared


@pytest.mark.parametrize("name", ["../../evil", ".hidden", "naïve", "a" * 121, "exp.old-1"])
def test_invalid_run_name_is_refused(prepared, root, name):
    with pytest.raises(UserError, match="^name=.*not a directory's name; "):
        prepared(f"name='{name}'", path="n")
    assert not (root / "logs" / "runs" / "n").exists()


def test_sweep_cell_accepts_init_partial_without_init_from(prepared):
    """``-m init_from=A,null init_partial=true`` has such a cell."""
    assert prepared("init_partial=true").config()["init_partial"]


def test_path_that_is_not_utf8_is_refused(root):
    """A locale of ASCII reads the bytes of "é" in this way, and no record could name the path."""
    place = root / os.fsdecode(b"\xc3")
    refused(
        lambda: resolve(compose_command("train", ["name=n"]), place),
        "not valid UTF-8",
        "LC_ALL=C.UTF-8",
    )


def test_force_on_full_disk_leaves_earlier_run_in_its_place(prepared, finished, monkeypatch):
    run = finished()
    result = (run / "summary.json").read_bytes()
    with monkeypatch.context() as patches:
        patches.setattr(module, "write_atomic", mock.Mock(side_effect=StorageError("full")))
        with pytest.raises(StorageError):
            prepared("force=true")
    assert (run / "summary.json").read_bytes() == result
    assert [*run.path.parent.iterdir()] == [run.path]
    new = prepared("force=true")
    assert new.status == "interrupted" and new.provenance.aside.startswith(f"{run.path.name}.old-")


def test_refused_run_with_force_restores_old_run(root, door, tiny):
    """``force=true`` with the same run's checkpoint: it has been moved aside when it is read."""
    assert door("triptych.cli.train", "name=a", *tiny).returncode == 0
    runs = root / "logs" / "runs"
    before = {
        path: path.read_bytes()
        for path in runs.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    done = door("triptych.cli.train", "name=a", *tiny, f"init_from={runs / 'a'}", "force=true")
    assert done.returncode == 1 and "init_from=" in done.stderr
    after = {
        path: path.read_bytes()
        for path in runs.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    assert after == before
