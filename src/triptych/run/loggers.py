"""Build a run's loggers: metrics.csv, and the loggers configured in ``logger``.

An error of a logger never ends a run.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyExperiment
from pytorch_lightning.utilities import rank_zero_only

from triptych.config.build import build
from triptych.config.identity import root
from triptych.config.own_code import error_location
from triptych.config.signatures import inspect_class
from triptych.config.trust import import_class
from triptych.records import Config
from triptych.run import wandb
from triptych.run.directory import RunDirectory, log_line
from triptych.run.metrics import MetricsCsv, flat_parameters, flatten_numbers, recorded_sweep_name
from triptych.run.parsing import error_line
from triptych.run.processes import rank
from triptych.run.result import Result
from triptych.run.untrusted import is_composed_here

ADDRESS = "MLFLOW_TRACKING_URI"
ID = "triptych.id"  # the tag that identifies a run
SQLITE = "sqlite:///"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    # A server that hangs would block the run. ``MLflowRun.pauses`` already defines retries.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
GUARDED_METHODS = (
    "log_metrics", "log_hyperparams", "log_graph", "log_picture", "save", "after_save_checkpoint", "finalize",
)  # fmt: skip


class CallGuard:
    """A function that calls a logging library, until the library raises its first error.

    The error is logged, and further calls do nothing. ``pauses`` are the seconds to wait before
    each retry of a failed call. With ``disabled`` the library is never called.
    """

    def __init__(self, title: str, pauses: Sequence[float] = (), disabled: bool = False):
        self.title, self.pauses, self.disabled = title, pauses, disabled

    def __call__(self, method: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Call ``method`` with its arguments, and return its value; None after an error."""
        if self.disabled:
            return None
        for pause in self.pauses:
            with suppress(Exception, SystemExit):
                return method(*arguments, **more)
            time.sleep(pause)
        try:
            return method(*arguments, **more)
        except (Exception, SystemExit) as error:  # Libraries raise exceptions of any type.
            self._disable(error)
        return None

    def _disable(self, error: BaseException) -> None:
        """Make further calls do nothing, and log the error as the reason."""
        self.disabled = True
        reason = error_line(error) + error_location(error)
        log_line(None, f"{self.title}: switched off ({reason}); metrics.csv has all metrics")
        if self.title == wandb.WandbRun.title:
            wandb.end_service()


class GuardedLogger(Logger):
    """A Lightning logger that is switched off at its first error.

    ``library`` is the class of the logger; it has ``title``, ``pauses``, ``log_picture`` and
    ``finish``. ``table`` provides the seconds of fitting at each step, which are logged as
    ``time``.
    """

    name = version = ""

    def __init__(self, library: Any, table: MetricsCsv, *arguments: Any):
        super().__init__()
        self.table, self.guard = (
            table,
            CallGuard(library.title, library.pauses, disabled=rank() != 0),
        )
        self.logger: Any = self.guard(library, *arguments)

    @property
    def experiment(self) -> Any:
        """The logging library's object for this run; a dummy if the logger is switched off."""
        return DummyExperiment() if self.guard.disabled else self.logger.experiment

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is logged at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {name: value for name, value in metrics.items() if name != "epoch"}
        if row:
            row |= self.table.fit_seconds_entry(step or 0)
            self.guard(lambda: self.logger.log_metrics(row, step or 0))

    def log_picture(self, key: str, path: Any, step: int) -> None:
        self.guard(lambda: self.logger.log_picture(key, path, step))

    def close(self, summary: Result | None) -> None:
        """Log the metrics of ``summary`` and close the logger; None: the run has not finished."""
        last, row = self.table.last_row
        self.guard(lambda: self.logger.finish(summary, last, row))


def guard_logger(logger: Logger, title: str) -> Logger:
    """Return a user-supplied logger, changed so that its first error switches it off."""
    guarded = CallGuard(title)
    for name in GUARDED_METHODS:
        if hasattr(logger, name):
            setattr(logger, name, partial(guarded, getattr(logger, name)))
    return logger


def build_loggers(run: RunDirectory, step: int, clock: Callable[[], float]) -> list[Logger]:
    """Build the logger of metrics.csv and the configured loggers.

    metrics.csv keeps its rows up to ``step``; ``clock`` returns the seconds of fitting so far.
    """
    table = MetricsCsv(run / "metrics.csv", clock)
    table.truncate_after(step)
    others: list[Logger] = []
    for name, node in (run.config()["logger"] or {}).items():
        if node and name in OURS:
            others += OURS[name](node, table, run)
        elif node:
            others.append(_build_user_logger(name, node, run))
    # If the fit was copied from another run, log its curves first.
    if step and not run.provenance.executions:
        _copy_rows(table, others)
    return [table, *others]


def _copy_rows(table: MetricsCsv, loggers: Iterable[Logger]) -> None:
    """Log all rows of metrics.csv to ``loggers``."""
    for step, row in sorted(table.rows.items()):
        for logger in loggers:
            logger.log_metrics({name: float(value) for name, value in row.items()}, step)


def _build_tensorboard(node: Config, table: MetricsCsv, run: RunDirectory) -> list[Logger]:
    """Return [TensorBoard's logger]."""
    return [GuardedLogger(TensorBoard, table, run, table.last_row[0])]


def _build_mlflow(node: Config, table: MetricsCsv, run: RunDirectory) -> list[Logger]:
    """Return [MLflow's logger], or [] without a tracking URI."""
    uri = mlflow_tracking_uri(node, run.config(), run)
    if uri is None:
        return []
    return [GuardedLogger(MLflowRun, table, run, uri, node.get("experiment"))]


def _build_wandb(node: Config, table: MetricsCsv, run: RunDirectory) -> list[Logger]:
    """Return [the logger of Weights & Biases], or [] if it is disabled."""
    mode = wandb.wandb_mode(node)
    if mode == "disabled":
        return []
    artifacts = bool(node.get("artifacts"))
    if artifacts and not is_composed_here(run):
        log_line(
            None,
            "W&B: artifacts are not sent, as the run's directory requests them but not your command",
        )
        artifacts = False
    description = wandb.describe_run(node, run.config(), run)
    return [GuardedLogger(wandb.WandbRun, table, run, mode, artifacts, description)]


OURS: dict[str, Callable[..., list[Logger]]] = {
    "csv": lambda *_: [],  # every run has it
    "tensorboard": _build_tensorboard,
    "mlflow": _build_mlflow,
    "wandb": _build_wandb,
}


def _build_user_logger(name: str, node: Config, run: RunDirectory) -> Logger:
    """Build a user's own logger, with the run's directory as ``save_dir`` if it takes one."""
    place = f"logger.{name}"
    arguments, takes_any = inspect_class(import_class(node["_target_"], place))
    folder: dict[str, Any] = {}
    if takes_any or "save_dir" in arguments:
        folder["save_dir"] = str(run.path)
    return guard_logger(build(node, place, **folder), place)


def import_libraries(run: RunDirectory) -> None:
    """Import slow logging libraries of a run in the server process from which runs are forked."""
    with suppress(Exception, SystemExit):  # The run itself will report the error.
        node = (run.config()["logger"] or {}).get("wandb")
        if node and wandb.wandb_mode(node) != "disabled":
            wandb.import_wandb(run / "wandb")
            for name in ("wandb.sdk.launch", "pandas"):  # W&B imports them when a run begins
                import_module(name)


@contextmanager
def close_loggers_on_exit(loggers: list[Logger], run: RunDirectory) -> Iterator[None]:
    """When the ``with`` block ends, log the result's metrics and close each logger.

    This is done after an exception, too.
    """
    summary = None
    try:
        yield
        summary = run.summary()
    finally:
        for logger in loggers:
            if isinstance(logger, GuardedLogger):
                logger.close(summary)
            else:
                logger.finalize("failed" if summary is None else "success")


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger, with hyperparameters and pictures.

    Values that an earlier start has logged for steps after ``step`` are removed.
    """

    title, pauses = "TensorBoard", ()

    def __init__(self, run: RunDirectory, step: int):
        super().__init__(
            str(run.path), "tensorboard", version="", purge_step=step + 1, flush_secs=5
        )
        from torch.utils.tensorboard.summary import hparams

        # Lightning's log_hyperparams needs all metrics in advance; TensorBoard does not.
        self.experiment.file_writer.add_summary(hparams(flat_parameters(run), {})[1])

    def log_picture(self, key: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self.experiment.add_image(
                key, np.asarray(picture.convert("RGB")), step, dataformats="HWC"
            )

    def finish(self, summary: Result | None, step: int, logged: Collection[str]) -> None:
        self.log_metrics(flatten_numbers(summary, logged), step)
        self.experiment.close()


class MLflowRun(MLFlowLogger):
    """Lightning's MLflow logger, which logs the configuration, tags, and pictures as artifacts."""

    title = "MLflow"
    pauses = (0.5, 1.0, 2.0, 4.0)  # Other runs of the sweep may be writing to the same database.

    def __init__(self, run: RunDirectory, uri: str, experiment: str | None):
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)  # MLflow reads them when it is imported.
        artifacts = None  # The server chooses the artifact location.
        if uri.startswith(SQLITE):
            folder = Path(uri.removeprefix(SQLITE)).absolute().parent
            folder.mkdir(parents=True, exist_ok=True)
            artifacts = (folder / "mlflow-artifacts").as_uri()
        provenance = run.provenance
        tags = {ID: provenance.id, "directory": str(run.path), "sweep": recorded_sweep_name(run)}
        tags["mlflow.source.git.commit"] = provenance.commit
        tags = {name: tag for name, tag in tags.items() if tag}
        super().__init__(
            experiment or "triptych", run.path.name, uri, tags, artifact_location=artifacts
        )
        self._run_id = self._existing_id(provenance.id)
        self.experiment.update_run(self.run_id, status="RUNNING")
        # MLflow refuses to change a parameter that was logged before.
        logged = self._mlflow_client.get_run(str(self.run_id)).data.params
        self.log_hyperparams(
            {key: value for key, value in flat_parameters(run).items() if key not in logged}
        )

    def _existing_id(self, run_id: str) -> str | None:
        """Return the id that MLflow gave to this run at an earlier start; None if there is none."""
        experiment = self._mlflow_client.get_experiment_by_name(self._experiment_name)
        if experiment is None:
            return None
        query = f"tags.`{ID}` = '{run_id}'"
        match = self._mlflow_client.search_runs([experiment.experiment_id], query, max_results=1)
        return match[0].info.run_id if match else None

    def log_picture(self, key: str, path: Path, step: int) -> None:
        self.experiment.log_artifact(self.run_id, str(path), "samples")

    def finish(self, summary: Result | None, step: int, logged: Collection[str]) -> None:
        self.log_metrics(flatten_numbers(summary, logged), step)
        self.finalize("failed" if summary is None else "success")


def mlflow_tracking_uri(node: Config, config: Config, run: RunDirectory) -> str | None:
    """Return MLflow's tracking URI; None, with a warning, if it comes from a copied directory."""
    folder = config.get("paths", {}).get("log_dir")
    default = os.environ.get(ADDRESS)
    uri = str(node.get("tracking_uri") or default or f"{SQLITE}{folder}/mlflow.db")
    if is_composed_here(run) or uri in (default, f"{SQLITE}{root()}/logs/mlflow.db"):
        return uri
    log_line(
        None,
        f"MLflow: not used, as only the run's directory names {uri}; to allow this address, export "
        f"{ADDRESS}={uri}",
    )
    return None
