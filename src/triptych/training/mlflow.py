"""MLflow's run of a run directory: the same one whenever the run goes on, each row once."""

import os
from pathlib import Path
from typing import Any

from triptych.config.names import root
from triptych.runs.directory import RunDirectory
from triptych.runs.metrics import MetricsCsv
from triptych.runs.provenance import mask_password
from triptych.runs.untrusted import is_own
from triptych.training.follower import Follower, Rows, as_text, say
from triptych.training.wandb_content import sweep_of

FILE = "mlflow.json"  # in the run's directory: {"tracking_uri", "run_id"}
ADDRESS = "MLFLOW_TRACKING_URI"
ID = "triptych.id"  # the tag that a run is found by
AT_ONCE = 1000  # metrics in a call, as MLflow has it
PARAMS, LONGEST = 100, 6000  # parameters in a call, characters in one
SQLITE = "sqlite:///"


class MLflow(Follower):
    """Metrics under the names and steps of ``metrics.csv``, the configuration as parameters, pictures.

    MLflow says where its history ends, and gets what comes after: a row is one transaction of its server, so
    none stands twice, wherever a kill comes.

    Args:
        uri: of MLflow's store or server.
        experiment: the name of MLflow's experiment.
    """

    title = "MLflow"
    pauses = (0.5, 1.0, 2.0, 4.0)  # a database that other runs of a sweep write to

    def __init__(self, run: RunDirectory, table: MetricsCsv, uri: str, experiment: str, every: float = 2.0):
        super().__init__(run, table, every)
        self.uri, self.experiment_name = uri, experiment
        self._client: Any = None
        self._id = ""
        self._sent = -1  # MLflow has the rows up to this step
        self._latest = 0  # ms since the epoch, of the last of them
        self._since = self.began

    def start(self, step: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        from mlflow import MlflowClient

        if self.uri.startswith(SQLITE):
            Path(self.uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=self.uri)
        self._id = self._known() or self._new()
        self._client.update_run(self._id, status="RUNNING")
        self.run.write(FILE, {"tracking_uri": mask_password(self.uri), "run_id": self._id})
        past = self._client.get_metric_history(self._id, "time")  # every row has one
        self._sent = max((one.step for one in past), default=-1)
        self._latest = max((one.timestamp for one in past), default=0)

    def _known(self) -> str:
        """MLflow's id of this run, "" if it has none."""
        experiment = self._client.get_experiment_by_name(self.experiment_name)
        if experiment is None:
            return ""
        wanted = f"tags.`{ID}` = '{self.run.provenance()['id']}'"
        found = self._client.search_runs([experiment.experiment_id], wanted, max_results=1)
        return found[0].info.run_id if found else ""

    def _new(self) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(self.experiment_name)
        if experiment is None:
            artifacts = None  # the server says where
            if self.uri.startswith(SQLITE):
                folder = Path(self.uri.removeprefix(SQLITE)).absolute().parent
                artifacts = (folder / "mlflow-artifacts").as_uri()
            number = self._client.create_experiment(self.experiment_name, artifacts)
        else:
            number = experiment.experiment_id
        provenance, own = self.run.provenance(), self.run.path
        tags = {"mlflow.runName": own.name, ID: provenance["id"], "directory": str(own)}
        if sweep := sweep_of(self.run):
            tags["sweep"] = sweep
        if commit := provenance.get("git", {}).get("commit"):
            tags["mlflow.source.git.commit"] = commit
        made: str = self._client.create_run(number, tags=tags).info.run_id
        parameters = [Param(k, as_text(v)[:LONGEST]) for k, v in self.parameters.items()]
        for at in range(0, len(parameters), PARAMS):
            self._client.log_batch(made, params=parameters[at : at + PARAMS])
        return made

    def take(self, rows: Rows) -> None:
        ready: list[Any] = []
        until = self._sent
        for step, row in rows.items():
            if step <= self._sent:
                continue
            if len(ready) + len(row) > AT_ONCE:
                self._log(ready, until)
                ready = []
            ready += self._metrics(row, step, self._since + row.get("time", 0.0))
            until = step
        self._log(ready, until)

    def _metrics(self, row: dict[str, float], step: int, seconds: float) -> list[Any]:
        from mlflow.entities import Metric

        self._latest = max(self._latest, round(1000 * seconds))  # a run that goes on may count less
        return [Metric(name, value, self._latest, step) for name, value in row.items()]

    def _log(self, metrics: list[Any], until: int) -> None:
        if metrics:
            self._client.log_batch(self._id, metrics=metrics)
        self._sent = until

    def take_picture(self, key: str, path: Path, step: int) -> None:
        self._client.log_artifact(self._id, str(path), "samples")

    def finish(self, ok: bool, final: dict[str, float], step: int) -> None:
        if final:
            self._client.log_batch(self._id, metrics=self._metrics(final, step, 0.0))
        self._client.set_terminated(self._id, "FINISHED" if ok else "FAILED")


def address(node: dict[str, Any], config: dict[str, Any], run: RunDirectory) -> str | None:
    """Where ``logger.mlflow`` writes; None, and a line, where a directory that was sent would say."""
    folder = (config.get("paths") or {}).get("log_dir")
    usual = os.environ.get(ADDRESS)
    asked = node.get("tracking_uri") or usual or f"{SQLITE}{folder}/mlflow.db"
    if is_own(run) or asked in (usual, f"{SQLITE}{root()}/logs/mlflow.db"):
        return str(asked)
    say(f"MLflow is left out: this directory would have it write to {asked}; {ADDRESS}={asked} lets it")
    return None
