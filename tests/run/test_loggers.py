"""TensorBoard and MLflow have the names, steps and figures of metrics.csv."""

import pytest

from tests.run.accidents import stop_after
from tests.run.test_wandb import TIMES, table
from triptych.cli.arguments import read_command_line
from triptych.errors import UserError
from triptych.run.execute import execute
from triptych.run.loggers import (
    GuardedLogger,
    build_loggers,
    close_loggers_on_exit,
    mlflow_tracking_uri,
)
from triptych.run.metrics import MetricsCsv, flatten_metrics

LOGGERS = """
from pytorch_lightning.loggers import Logger

class Plain(Logger):
    name = version = ""

    def log_hyperparams(self, *more):
        ...

    def log_metrics(self, metrics, step=None):
        ...

class Placed(Plain):
    def __init__(self, save_dir):
        super().__init__()
        self.place = save_dir

class Mine(Placed):
    def log_metrics(self, metrics, step=None):
        raise OSError("no disk")

    def finalize(self, status):
        raise OSError("no disk")
"""
SINGLE = 1e-6  # the precision of TensorBoard's scalars
BOTH = "logger=[tensorboard,mlflow]"


def scalars(folder) -> dict[str, dict[int, float]]:
    """Read {name: {step: value}} of all event files by TensorBoard's reader; steps are unique."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0})
    found.Reload()
    read = {}
    for name in found.Tags()["scalars"]:
        events = found.Scalars(name)
        assert [e.step for e in events] == sorted(e.step for e in events), name
        read[name] = by_step(name, [(e.step, e.value) for e in events])
    return read


def by_step(name: str, points: list[tuple[int, float]]) -> dict[int, float]:
    """Return {step: value}; a step that a resumed run repeats has one value."""
    read = dict(sorted(points))
    assert name in TIMES or all(read[step] == value for step, value in points), name
    return read


def by_name(rows) -> dict[str, dict[int, float]]:
    """Return metrics.csv as {name: {step: value}}."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: {step: row[name] for step, row in rows.items() if name in row} for name in names}


def check(run, theirs: dict[str, dict[int, float]], precision: float) -> None:
    """Check a logger's figures: the table's, and the summary's with errors in the last row."""
    rows, last = by_name(table(run.path)), max(table(run.path))
    final = {
        k: float(v)
        for k, v in flatten_metrics(run.summary().record).items()
        if isinstance(v, int | float)
    }
    assert "test/bpd_stderr" in final and "final/val_bpd_stderr" in final
    assert set(theirs) == set(rows) | set(final)
    for name, row in rows.items():
        told = dict(theirs[name])
        assert [*told] == [*row] or name in final, name
        if name not in TIMES:
            assert {step: told[step] for step in row} == pytest.approx(row, rel=precision), name
    for name, value in final.items():
        rounded = (
            SINGLE if last in rows.get(name, {}) else precision
        )  # Lightning logs single precision
        assert theirs[name][last] == pytest.approx(value, rel=rounded), name


def test_resumed_run_is_one_run_in_tensorboard_and_mlflow(prepared, root):
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    run = stop_after(prepared(BOTH, "trainer.max_steps=12", csv=False), 8)
    other = run.config()
    other["trainer"]["benchmark"] = False  # how it runs may change from start to start
    run.write("config.yaml", other)
    assert scalars(run) and max(scalars(run)["train/loss"]) < 8
    assert execute(run)["status"] == "finished"
    check(run, scalars(run.path), SINGLE)
    events = EventAccumulator(str(run / "tensorboard"), {"images": 0})
    events.Reload()
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    said = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert said["optimizer.lr"].number_value == run.config()["optimizer"]["lr"]
    assert said["objective"].string_value == "epsilon" and said["seed"].number_value == 1
    assert {*events.Tags()["images"]} == {"samples", "samples/final", "samples/trajectory"}

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/logs/mlflow.db")
    [found] = client.search_runs([one.experiment_id for one in client.search_experiments()])
    histories = {
        name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics
    }
    points = {
        name: [(one.step, one.value) for one in history] for name, history in histories.items()
    }
    check(run, {name: by_step(name, row) for name, row in points.items()}, 1e-12)
    assert found.info.status == "FINISHED" and found.data.tags["mlflow.runName"] == "tiny"
    assert found.data.params["optimizer.lr"] == str(run.config()["optimizer"]["lr"])
    assert found.data.params["objective"] == "epsilon" and found.data.params["seed"] == "1"
    assert (root / "logs" / "mlflow.db").is_file()
    assert [*(root / "logs").rglob("mlflow-artifacts/**/final.png")]


class Stub:
    """A logger that raises at chosen calls, as often as a test asks for."""

    title, pauses = "Stub", (0.0, 0.0)
    fails: dict[str, int] = {}

    def __init__(self):
        self.taken: list[int] = []
        self.may("start")

    def may(self, moment: str) -> None:
        if self.fails.get(moment, 0):
            self.fails[moment] -= 1
            raise OSError("broken pipe")

    def log_metrics(self, metrics, step):
        self.may("log")
        self.taken.append(step)

    def finish(self, *_):
        self.may("finish")


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """``stub(start=9)``: log five rows with a Guarded logger that fails 9 times at its start.

    Returns the logger.
    """

    def log(**fails: int) -> GuardedLogger:
        monkeypatch.setattr(Stub, "fails", fails)
        rows = MetricsCsv(tmp_path / "metrics.csv", float)
        logger = GuardedLogger(Stub, rows)
        for step in range(5):
            for one in (rows, logger):
                one.log_metrics({"train/loss": 1.0}, step)
        logger.close({"test": {}})
        return logger

    return log


@pytest.mark.parametrize("moment", ["start", "log", "finish"])
def test_logger_error_is_reported_in_one_line(stub, capsys, moment):
    assert stub(**{moment: 9}).guard.disabled
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Stub: switched off (broken pipe)") and "metrics.csv" in line


def test_user_logger_error_is_reported_with_file_and_line(trusting, prepared, capsys):
    file, run = trusting("own_loggers", LOGGERS), prepared()
    run.write("config.yaml", run.config() | {"logger": {"mine": {"_target_": "own_loggers.Mine"}}})
    loggers = build_loggers(run, 0, float)
    with close_loggers_on_exit(loggers, run):
        for step in (0, 1):
            loggers[1].log_metrics({"train/loss": 1.0}, step)
    [line] = capsys.readouterr().err.splitlines()
    said = (
        f"logger.mine: switched off (no disk ({file}:20, in log_metrics)); metrics.csv has all "
        "metrics"
    )
    assert line == said


def test_transient_logger_failure_is_retried(stub, capsys):
    """Another run of the sweep locks the database for a moment."""
    assert stub(start=2, log=1, finish=2).logger.taken == [*range(5)]
    assert not capsys.readouterr().err


def test_mlflow_tracking_uri_of_untrusted_run_is_ignored(prepared, monkeypatch, capsys, root):
    asked = f"sqlite:///{root}/elsewhere.db"
    run = prepared("logger=mlflow", f"logger.mlflow.tracking_uri={asked}", csv=False)
    node = run.config()["logger"]["mlflow"]
    assert mlflow_tracking_uri(node, run.config(), run) is None
    assert f"MLFLOW_TRACKING_URI={asked}" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", asked)
    assert mlflow_tracking_uri(node, run.config(), run) == asked
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("TRIPTYCH_OWN", str(run.path))
    assert mlflow_tracking_uri(node, run.config(), run) == asked


def test_mlflow_tracking_uri_with_password_is_refused(prepared, root):
    address = "postgresql://me:secret@host/db"
    with pytest.raises(
        UserError, match=r"tracking_uri=postgresql://\*\*\*@host/db: .*MLFLOW_TRACKING_URI"
    ):
        prepared("logger=mlflow", f"logger.mlflow.tracking_uri={address}", csv=False)
    assert not (root / "logs").exists()


def test_mlflow_tracking_uri_with_password_is_refused_in_sweep():
    """A sweep's logger is refused before there are runs, as its command is recorded."""
    with pytest.raises(
        UserError, match=r"^logger\.mlflow\.tracking_uri=http://\*\*\*@host: a password"
    ):
        read_command_line(
            ["-m", "logger.mlflow.tracking_uri=http://me:secret@host", "seed=1,2"], "train"
        )


def test_user_logger_receives_save_dir_if_it_accepts_it(prepared, trusting):
    trusting("own_loggers", LOGGERS)
    run = prepared("data=ring", "denoiser=mlp")
    kinds = {"a": {"_target_": "own_loggers.Plain"}, "b": {"_target_": "own_loggers.Placed"}}
    run.write("config.yaml", run.config() | {"logger": kinds})
    _, plain, placed = build_loggers(run, 0, lambda: 0.0)
    assert placed.place == str(run.path) and not hasattr(plain, "place")
