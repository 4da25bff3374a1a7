"""TensorBoard and MLflow follow metrics.csv: the same names, steps and figures, each once."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

from tests.training.test_wandb import table
from triptych.errors import UserError
from triptych.runs.directory import RunDirectory
from triptych.runs.metrics import MetricsCsv
from triptych.training.execute import execute
from triptych.training.mlflow import MLflow, address
from triptych.training.tensorboard import TensorBoard
from triptych.training.wandb_content import figures

SINGLE = 1e-6  # the precision of TensorBoard's scalars
BOTH = "logger=[tensorboard,mlflow]"


def scalars(folder) -> dict[str, dict[int, float]]:
    """{name: {step: value}} of all event files, by TensorBoard's own reader; no step stands twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0})
    found.Reload()
    read = {}
    for name in found.Tags()["scalars"]:
        events = found.Scalars(name)
        assert [e.step for e in events] == sorted({e.step for e in events}), name
        times = [e.wall_time for e in events]
        assert times == sorted(times)
        read[name] = {e.step: e.value for e in events}
    return read


def by_name(rows) -> dict[str, dict[int, float]]:
    """metrics.csv as {name: {step: value}}."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: {step: row[name] for step, row in rows.items() if name in row} for name in names}


def check(run, theirs: dict[str, dict[int, float]], precision: float, but: tuple[str, ...] = ()) -> None:
    """Theirs are the table's figures and, in its last row, those of the summary, with their errors."""
    rows, last = by_name(table(run.path)), max(table(run.path))
    final = {k: float(v) for k, v in figures(run.summary()).items() if isinstance(v, int | float)}
    assert "test/bpd_stderr" in final and "final/val_bpd_stderr" in final
    assert set(theirs) == set(rows) | set(final)
    for name, row in rows.items():
        told = dict(theirs[name])
        assert [*told] == [*row] or name in final, name
        if name not in but:
            assert {step: told[step] for step in row} == pytest.approx(row, rel=precision), name
    for name, value in final.items():
        rounded = SINGLE if last in rows.get(name, {}) else precision  # Lightning logs single precision
        assert theirs[name][last] == pytest.approx(value, rel=rounded), name


def stop_after(monkeypatch, run, at: int) -> None:
    """The first execution ends after step ``at``, between two checkpoints, as by a kill."""
    from triptych.callbacks.checkpointing import Keep

    after_a_step = Keep.on_train_batch_end

    def then_fail(keep, trainer, *rest):
        after_a_step(keep, trainer, *rest)
        if trainer.global_step == at:
            raise RuntimeError("an accident")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="an accident"):
        patch.setattr(Keep, "on_train_batch_end", then_fail)
        execute(run)
    (run / "summary.json").unlink()


def check_hyperparameters_and_pictures(run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    events = EventAccumulator(str(run / "tensorboard"), {"images": 0})
    events.Reload()
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    said = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert said["optimizer.lr"].number_value == run.config()["optimizer"]["lr"]
    assert said["objective"].string_value == "epsilon" and said["seed"].number_value == 1
    assert {*events.Tags()["images"]} == {"samples", "samples/final", "samples/trajectory"}


def of_mlflow(run) -> tuple[object, dict[str, dict[int, float]]]:
    """MLflow's run, found by the id that the directory keeps, and its whole history."""
    from mlflow import MlflowClient

    known = json.loads((run / "mlflow.json").read_text())
    client = MlflowClient(tracking_uri=known["tracking_uri"])
    found = client.get_run(known["run_id"])
    assert len(client.search_runs([found.info.experiment_id])) == 1
    read = {}
    for name in found.data.metrics:
        history = client.get_metric_history(known["run_id"], name)
        steps = [one.step for one in history]
        assert len(steps) == len(set(steps)), (name, steps)
        ordered = sorted(history, key=lambda one: one.step)
        assert [one.timestamp for one in ordered] == sorted(one.timestamp for one in ordered)
        read[name] = {one.step: one.value for one in ordered}
    return found, read


def test_a_run_that_goes_on_is_one_run_in_both(prepared, monkeypatch, root):
    run = prepared(BOTH, "trainer.max_steps=12", csv=False)
    stop_after(monkeypatch, run, 8)
    assert scalars(run) and max(scalars(run)["train/loss"]) < 8
    assert execute(run)["status"] == "finished"
    check(run, scalars(run.path), SINGLE)
    check_hyperparameters_and_pictures(run)
    found, read = of_mlflow(run)
    # a row that MLflow had before the stop keeps the time that it had then
    check(run, read, 1e-12, but=("time", "train/images_per_second"))
    assert found.info.status == "FINISHED" and found.data.tags["mlflow.runName"] == "tiny"
    assert found.data.params["optimizer.lr"] == str(run.config()["optimizer"]["lr"])
    assert found.data.params["objective"] == "epsilon" and found.data.params["seed"] == "1"
    assert (root / "logs" / "mlflow.db").is_file() and [
        *(root / "logs").rglob("mlflow-artifacts/**/final.png")
    ]


@pytest.mark.parametrize("moment", ["start", "take", "finish"])
@pytest.mark.parametrize("kind", [TensorBoard, MLflow])
def test_whatever_they_raise_is_a_line(tmp_path, monkeypatch, capsys, kind, moment):
    def broken(*_, **__):
        raise OSError("broken pipe")

    for name in ("start", "take", "finish"):
        monkeypatch.setattr(kind, name, broken if name == moment else lambda *_, **__: None)
    monkeypatch.setattr(MLflow, "pauses", (0.0,))
    run = RunDirectory(tmp_path)
    rows = MetricsCsv(run / "metrics.csv")
    logger = kind(run, rows, *(["sqlite:///x", "x"] if kind is MLflow else []))
    logger.begin(0)
    for step in range(5):
        rows.log_metrics({"train/loss": 1.0}, step)
        logger.save()
    logger.close(True)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{logger.title} is left out from here on (broken pipe)") and "metrics.csv" in line


def test_a_failure_that_passes_is_tried_again(tmp_path, monkeypatch, capsys):
    """A database that another run of the sweep holds locked for a moment."""
    taken, tries = [], []

    def take(self, rows):
        tries.append(1)
        if len(tries) < 3:
            raise OSError("database is locked")
        taken.extend(rows)

    monkeypatch.setattr(MLflow, "pauses", (0.0, 0.0))
    monkeypatch.setattr(MLflow, "start", lambda *_: None)
    monkeypatch.setattr(MLflow, "finish", lambda *_: None)
    monkeypatch.setattr(MLflow, "take", take)
    rows = MetricsCsv(tmp_path / "metrics.csv")
    logger = MLflow(RunDirectory(tmp_path), rows, "sqlite:///x", "x")
    logger.begin(0)
    rows.log_metrics({"train/loss": 1.0}, 7)
    logger.close(True)
    assert taken == [7] and not capsys.readouterr().err


def test_a_package_that_is_not_there_is_refused_at_the_door(prepared, monkeypatch):
    from triptych.config import schema

    monkeypatch.setattr(schema, "find_spec", lambda name: None)
    for name in ("tensorboard", "mlflow"):
        with pytest.raises(UserError, match=rf"logger={name}: .*pip install 'triptych\[loggers\]'"):
            prepared(f"logger={name}", csv=False)


def test_a_directory_that_was_sent_to_us_does_not_say_where_mlflow_writes(
    prepared, monkeypatch, capsys, root
):
    asked = f"sqlite:///{root}/elsewhere.db"
    run = prepared("logger=mlflow", f"logger.mlflow.tracking_uri={asked}", csv=False)
    node = run.config()["logger"]["mlflow"]
    assert address(node, run.config(), run) is None
    assert f"MLFLOW_TRACKING_URI={asked}" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", asked)
    assert address(node, run.config(), run) == asked
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("TRIPTYCH_OWN", str(run.path))
    assert address(node, run.config(), run) == asked


@pytest.mark.slow
def test_tensorboards_server_has_the_figures_of_the_table(prepared, root):
    """A real server on this machine, read over HTTP; the run has its directory's name."""
    run = prepared("logger=tensorboard", csv=False)
    execute(run)
    line = [sys.executable, "-m", "tensorboard.main", "--logdir", str(root / "logs")]
    line += ["--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(line, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        said = next(text for text in server.stderr if "http://" in text)
        url = re.search(r"http://[\w.]+:\d+/", said)[0] + "data/plugin/scalars/"

        def get(what: str, **query: str):
            with urllib.request.urlopen(f"{url}{what}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
                return json.load(answer)

        until = time.monotonic() + 60
        while not (tags := get("tags")):
            assert time.monotonic() < until
            time.sleep(0.5)
        [(name, known)] = tags.items()
        assert name == "runs/tiny/tensorboard"
        read = {}
        for tag in known:
            rows = get("scalars", run=name, tag=tag)
            read[tag] = {step: value for _, step, value in rows}
            assert len(read[tag]) == len(rows)
        check(run, read, SINGLE)
    finally:
        server.terminate()
        server.communicate(timeout=30)


@pytest.mark.slow
def test_a_server_has_the_figures_of_the_table(root, door):
    """A real server on this machine; the command is killed once and typed again; read back over HTTP."""
    import socket

    from tests.runs.commands import command, environment
    from tests.training.test_wandb import kill_at_random_then_finish

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    line = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    line += ["--workers", "1", "--backend-store-uri", f"sqlite:///{root}/server.db"]
    line += ["--default-artifact-root", str(root / "artifacts")]
    quiet = environment(root, MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    server = subprocess.Popen(
        line,
        env=quiet,
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1)
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.2)
        folder = root / "logs" / "runs" / "mine"
        long = ("trainer.max_steps=120", "trainer.val_check_interval=20", "trainer.log_every_n_steps=5")
        asked = [a.replace("logger=csv", "logger=mlflow") for a in command("name=mine", *long)]
        there = environment(root, MLFLOW_TRACKING_URI=url)
        kill_at_random_then_finish(asked, there, folder, 1)
        run = RunDirectory(folder)
        number = json.loads((run / "mlflow.json").read_text())["run_id"]

        def get(what: str, **query: str) -> dict:
            asked = urllib.parse.urlencode(query)
            with urllib.request.urlopen(f"{url}/api/2.0/mlflow/{what}?{asked}", timeout=30) as answer:
                return json.load(answer)

        told = get("runs/get", run_id=number)["run"]
        assert told["info"]["status"] == "FINISHED"
        read = {}
        for name in (metric["key"] for metric in told["data"]["metrics"]):
            history = get("metrics/get-history", run_id=number, metric_key=name)["metrics"]
            steps = [int(one.get("step", 0)) for one in history]
            assert len(steps) == len(set(steps)), name
            read[name] = dict(sorted(zip(steps, (float(one["value"]) for one in history), strict=True)))
        check(run, read, 1e-12, but=("time", "train/images_per_second"))
        assert all(math.isfinite(v) for v in read["train/loss"].values())
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
