"""MLflow's run of a run directory: the same one whenever the run goes on."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger

from triptych.config.names import root
from triptych.errors import mask_password
from triptych.run.directory import RunDirectory
from triptych.run.log_content import flat_numbers, parameters, sweep_of, warn
from triptych.run.result import Result
from triptych.run.untrusted import is_composed_here

FILE = "mlflow.json"  # in the run's directory: {"tracking_uri", "run_id"}
ADDRESS = "MLFLOW_TRACKING_URI"
ID = "triptych.id"  # the tag by which a run is found again
SQLITE = "sqlite:///"


class MLflowRun(MLFlowLogger):
    """Lightning's logger, with the configuration as parameters, tags, and pictures as artifacts.

    Args:
        uri: of MLflow's store or server.
        experiment: the name of MLflow's experiment.
    """

    title = "MLflow"
    pauses = (0.5, 1.0, 2.0, 4.0)  # a database to which other runs of a sweep write

    def __init__(self, run: RunDirectory, uri: str, experiment: str | None):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # a server that hangs holds up the run:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # ``pauses`` are tries enough
        artifacts = None  # the server decides
        if uri.startswith(SQLITE):
            folder = Path(uri.removeprefix(SQLITE)).absolute().parent
            folder.mkdir(parents=True, exist_ok=True)
            artifacts = (folder / "mlflow-artifacts").as_uri()
        provenance = run.provenance()
        tags = {
            ID: provenance["id"],
            "directory": str(run.path),
            "sweep": sweep_of(run),
            "mlflow.source.git.commit": (provenance.get("git") or {}).get("commit"),
        }
        super().__init__(
            experiment or "triptych",
            run.path.name,
            uri,
            {name: tag for name, tag in tags.items() if tag},
            artifact_location=artifacts,
        )
        if known := self._mlflow_client.get_experiment_by_name(self._experiment_name):
            wanted = f"tags.`{ID}` = '{provenance['id']}'"
            match = self._mlflow_client.search_runs([known.experiment_id], wanted, max_results=1)
            self._run_id = match[0].info.run_id if match else None
        self.experiment.update_run(self.run_id, status="RUNNING")
        run.write(FILE, {"tracking_uri": mask_password(uri), "run_id": self.run_id})
        self.log_hyperparams(parameters(run))

    def log_picture(self, key: str, path: Path, step: int) -> None:
        """Keep a picture as an artifact."""
        self.experiment.log_artifact(self.run_id, str(path), "samples")

    def finish(self, summary: Result | None, step: int, logged: Collection[str]) -> None:
        """Log the figures of ``summary`` that are not ``logged`` yet, and end."""
        self.log_metrics(flat_numbers(summary, logged), step)
        self.finalize("failed" if summary is None else "success")


def address(node: dict[str, Any], config: dict[str, Any], run: RunDirectory) -> str | None:
    """Where ``logger.mlflow`` writes; None, and a line, where a directory from elsewhere names the place."""
    folder = (config.get("paths") or {}).get("log_dir")
    usual = os.environ.get(ADDRESS)
    uri = node.get("tracking_uri") or usual or f"{SQLITE}{folder}/mlflow.db"
    if is_composed_here(run) or uri in (usual, f"{SQLITE}{root()}/logs/mlflow.db"):
        return str(uri)
    warn(f"MLflow is left out: this directory would have it write to {uri}; {ADDRESS}={uri} allows it")
    return None
