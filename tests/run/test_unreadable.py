"""A malformed record is refused in one line, and no byte of its directory is changed."""

import json
import os
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import triptych
from tests.conftest import TINY
from tests.refusal import refused
from triptych import files
from triptych.errors import Unreadable
from triptych.files import file_digest
from triptych.run import untrusted
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.provenance_file import ID, Provenance
from triptych.run.read import find_runs, is_run, read_run
from triptych.run.untrusted import adopt_trained_config
from triptych.study.study import read_study

RESULT = {"schema": 1, "status": "finished"}
RECORDS = {
    "schema": ("summary.json", RESULT | {"schema": 99}, "schema=99: must be 1"),
    "layout": (
        "summary.json",
        {"schema": 1, "result": {"state": "finished"}},
        "status=None: must be ",
    ),
    "figure": (
        "summary.json",
        RESULT | {"test": {"accuracy": {"mean": "x"}}},
        "test.accuracy.mean is 'x'",
    ),
    "ended": ("summary.json", RESULT | {"ended": "yesterday"}, "yesterday"),
    "list": ("summary.json", [1], "not a JSON object"),
    "cut": ("summary.json", '{"schema": 1, "sta', "cannot be read (Unterminated string"),
    "bytes": ("summary.json", "\udcff", "cannot be read ('utf-8' codec"),
    "folder": ("summary.json", None, "not a regular file"),
    "empty": ("provenance.json", "", "cannot be read (Expecting value"),
    "overrides": ("provenance.json", {"overrides": 3}, "overrides=3: must be a list"),
    "override": ("provenance.json", {"overrides": [1]}, "overrides=[1]: must be a list, each text"),
    "choices": ("provenance.json", {"choices": [1]}, "choices=[1]: must be a group"),
    "data": ("provenance.json", {"data": [1]}, "data=[1]: must be a group"),
    "executions": ("provenance.json", {"executions": ["x"]}, "executions=['x']: must be a list"),
    "host": ("provenance.json", {"executions": [{"host": 5}]}, "host=5: must be text"),
    "memory": (
        "provenance.json",
        {"fit_of": {"memory": "x"}},
        "fit_of.memory='x': must be a number",
    ),
    "id": ("provenance.json", {"id": "../x"}, "id=../x: must be letters, digits, - and _"),
    "started": ("provenance.json", {"started": "yesterday"}, "yesterday"),
}


def plant(file: Path, content: object) -> None:
    """Write a record with this content; None: make a directory in its place."""
    file.unlink(missing_ok=True)
    if content is None:
        file.mkdir()
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        file.write_bytes(text.encode(errors="surrogateescape"))


def state(folder: Path) -> dict[str, str | None]:
    """Return every path in a directory with its content's digest, except the lock."""
    return {
        str(path): file_digest(path) for path in sorted(folder.rglob("*")) if path.name != ".lock"
    }


@pytest.mark.parametrize(("name", "content", "reason"), RECORDS.values(), ids=RECORDS)
def test_unreadable_record_is_refused_and_kept(prepared, name, content, reason):
    run = prepared()
    plant(run / name, content)
    before = state(run.path)
    for attempt in (prepared, lambda: execute(RunDirectory(run.path))):
        line = refused(attempt, f"{run / name}: ", reason, error=Unreadable)
        assert line.endswith("; restore it, or move it aside")
    assert state(run.path) == before
    read = read_run(run.path)
    assert (
        read.status == "unreadable" and read.error.startswith(f"{name}: ") and reason in read.error
    )


@pytest.mark.parametrize("name", ["summary.json", "provenance.json"])
def test_force_moves_unreadable_run_aside(prepared, name):
    run = prepared()
    plant(run / name, "x")
    prepared("force=true")
    (aside,) = run.path.parent.glob("*.old-*")
    assert (aside / name).read_text() == "x" and not (run / "summary.json").exists()


@pytest.mark.parametrize("command", ["evaluate", "sample", "load"])
def test_unreadable_summary_requires_checkpoint_path(finished, inside, command):
    """It is unknown which of two checkpoints the run reports; each opens by its own name."""
    run = finished()
    plant(run / "summary.json", RESULT | {"schema": 99})
    before = state(run.path)
    if command == "load":
        refused(lambda: triptych.load(run.path), "schema=99", error=Unreadable)
        assert triptych.load(run / "checkpoints" / "last.ckpt").model
    else:
        done = inside(f"triptych.cli.{command}", f"ckpt={run.path}")
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "schema=99" in done.stderr
    assert state(run.path) == before


def test_sweep_with_unreadable_run_is_refused_before_writing(root, inside, door):
    line = ["-m", "name=s", "seed=1,2", "logger=csv", *TINY]
    sweep = root / "logs" / "sweeps" / "s"
    assert door("triptych.cli.train", *line, "trainer.max_steps=3").returncode == 0
    first, second = sorted(file.parent for file in sweep.rglob("config.yaml"))
    recorded = (first / "summary.json").read_text()
    plant(first / "summary.json", RESULT | {"schema": 99})
    shutil.rmtree(second)
    before = state(sweep)
    done = inside("triptych.cli.train", *line, "trainer.max_steps=3")
    assert done.returncode == 1 and "schema=99: must be 1" in done.stderr.splitlines()[-1]
    assert state(sweep) == before
    study = read_study([sweep])
    assert study.banner.startswith("0 of 2 runs finished, 1 unreadable")
    assert "retry" not in str(study.next_step)
    (first / "summary.json").write_text(recorded)
    plant(sweep / "sweep.json", "x")
    before = state(sweep)
    done = inside("triptych.cli.train", *line, "trainer.max_steps=3")
    assert done.returncode == 1 and "sweep.json: cannot be read" in done.stderr.splitlines()[-1]
    assert state(sweep) == before


def test_run_without_provenance_gets_one_id(prepared):
    """Loggers know the run by this id when it resumes."""
    run = prepared()
    (run / "provenance.json").unlink()
    execute(again := RunDirectory(run.path))
    known = RunDirectory(run.path).provenance
    assert known.id and ID.fullmatch(known.id) and known.id == again.provenance.id
    assert len(known.executions) == 1 and known.fingerprint


def test_provenance_from_json_defaults_to_empty():
    assert Provenance.from_json({}) == Provenance(executions=[])
    assert Provenance.from_json({"git": None, "started": None, "record": 5}).record["record"] == 5


def test_run_directory_without_permission_is_unreadable(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scandir, open_regular, access = os.scandir, files.open_regular, os.access

    def refuse(call):
        def guarded(path, *more):
            if "closed" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *more)

        return guarded

    monkeypatch.setattr(os, "scandir", refuse(scandir))
    monkeypatch.setattr(files, "open_regular", refuse(open_regular))
    monkeypatch.setattr(
        os, "access", lambda path, mode: "closed" not in str(path) and access(path, mode)
    )
    assert find_runs(tmp_path) == [tmp_path / "closed"] and is_run(tmp_path / "closed")
    run = read_run(tmp_path / "closed")
    assert (run.status, run.error.partition(";")[0]) == (
        "unreadable",
        "provenance.json: cannot be read (Permission denied)",
    )


def test_write_provenance_refuses_malformed_entry(prepared):
    """``fit_of`` of a planted checkpoint is malformed, and a resuming run would copy it."""
    run = prepared()
    before = state(run.path)
    planted = {**run.provenance.record, "fit_of": {"run": "a", "memory": "x"}}
    refused(lambda: run.write_provenance(planted), "fit_of.memory='x': must be a number")
    assert state(run.path) == before


def test_train_from_python_refuses_name_of_other_run(finished):
    """In Python, no command gives Hydra's defaults."""
    line = ["name=tiny", "callbacks.ema.others=[]", "logger=csv", *TINY]
    finished(path="tiny")
    for other in ("optimizer=sgd", "callbacks=early_stopping"):
        refused(
            lambda other=other: triptych.train([*line, other]), "holds another run", "force=true"
        )


def test_trained_run_without_likelihood_group_is_adopted(finished, monkeypatch):
    monkeypatch.setattr(
        untrusted, "check_checkpoint", lambda *_: None
    )  # which has that group, here
    run = finished()
    result, config = run.summary(), run.config()
    del config["likelihood"]
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    run.record(result)
    adopted = config | {"trained": str(run.path), "likelihood": {"items": 3}}
    adopt_trained_config(adopted, {"likelihood": "ode"}, [])
    assert "likelihood" not in adopted


def test_config_yaml_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    refused(
        RunDirectory(tmp_path).config,
        f"{tmp_path / 'config.yaml'}: cannot be read",
        "not a regular file",
    )
