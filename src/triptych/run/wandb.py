"""Log a run to Weights & Biases: online if the user is logged in and W&B answers, else offline."""

import contextlib
import netrc
import os
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import WandbLogger

from triptych.errors import mask_password
from triptych.records import Config, Entries
from triptych.run.directory import RunDirectory, log_line
from triptych.run.metrics import (
    RESOLVED,
    curve_tables,
    flatten_metrics,
    grouping_settings,
    recorded_sweep_name,
)
from triptych.run.parsing import error_line
from triptych.run.result import Result

INIT_TIMEOUT, FINISH_TIMEOUT = 5.0, 30.0  # seconds for W&B's start and for the upload at the end
SEND_TIMEOUT = 10.0  # timeout in seconds for sending the panels or the checkpoint
GROUPS = ("experiment", "ablation", "data")  # groups whose choices become tags
STEP = "trainer/global_step"  # Lightning's step metric
BOUNDS = ("val/bound", "val/bpd", "val/nats_per_dim", "val/cross_entropy")  # lower is better
SINGLE_VALUES = ("test/", "final/")  # metrics with one value per run: only in the summary, no curve
# {environment variable of W&B: subfolder of the run's W&B folder}
FOLDERS = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache", "WANDB_CONFIG_DIR": "config"}
_set_variables: set[str] = set()  # those variables of FOLDERS that this process has set


class WandbRun(WandbLogger):
    """Lightning's W&B logger, which also logs panels and, with ``artifacts``, the checkpoint.

    ``mode`` "online" becomes "offline", with a message, if W&B does not answer. ``metadata`` are
    arguments of wandb.init.
    """

    title, pauses = "W&B", ()

    def __init__(self, run: RunDirectory, mode: str, artifacts: bool, metadata: Entries):
        self.run, self.artifacts = run, artifacts
        self.wandb = import_wandb(run / "wandb")
        settings = self.wandb.Settings(
            console="off",
            silent=True,
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=0.2,  # seconds, so that a kill loses little
        )
        super().__init__(save_dir=str(run.path), mode=mode, settings=settings, **metadata)
        del self._wandb_init["anonymous"]  # W&B warns about any value.
        # Otherwise Lightning would reuse a run that this process has left open after an error.
        if self.wandb.run is not None:
            self.wandb.run.finish()
        started = self._start()
        # This link is absolute, and would prevent resuming a run whose directory was moved.
        (Path(started.settings.sync_dir) / "logs" / "debug-core.log").unlink(missing_ok=True)
        started.define_metric(STEP, hidden=True)
        for bound in BOUNDS:
            started.define_metric(bound, step_metric=STEP, summary="min,last")

    def _start(self) -> Any:
        """Start the W&B run; if W&B does not answer, start it offline."""
        folder = self.run / "wandb"
        before = {*folder.glob("*run-*")}
        try:
            return self.experiment
        except Exception as error:
            if self._wandb_init["mode"] == "offline":
                raise
            reason = error_line(error)
        end_service()  # Otherwise it keeps retrying, and holds the run id.
        for path in {*folder.glob("*run-*")} - before:
            shutil.rmtree(path, ignore_errors=True)
        self._wandb_init["mode"] = "offline"
        started = self.experiment
        log_line(None, f"W&B: offline ({reason}); upload the run after its end with `{self.sync}`")
        return started

    @property
    def sync(self) -> str:
        """The shell command that uploads the files of this run's start to W&B."""
        # Without the flag, `wandb sync` skips runs that were online.
        flag = "--include-online " if self._wandb_init["mode"] == "online" else ""
        return f"wandb sync {flag}{shlex.quote(self.experiment.settings.sync_dir)}"

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log the metrics of a step; metrics with one value per run go into the summary instead."""
        once = {name: value for name, value in metrics.items() if name.startswith(SINGLE_VALUES)}
        self.experiment.summary.update(once)
        if {*metrics} - {*once, "time"}:
            super().log_metrics({k: v for k, v in metrics.items() if k not in once}, step)

    def log_picture(self, key: str, path: Path, step: int) -> None:
        if path.exists():
            self.log_image(key, [str(path)], step, caption=[f"step {step}"])

    def finish(self, summary: Result | None, step: int, logged: Collection[str]) -> None:
        if summary:
            self._send("the panels", lambda: self._log_panels(summary, step))
            self.experiment.summary.update(flatten_metrics(summary.record))
            if self.artifacts:
                self._send("the checkpoint", self._log_checkpoint)
        try:
            self.experiment.finish(exit_code=1 if summary is None else 0)
        except TimeoutError:
            log_line(
                None,
                f"W&B: upload not finished within {FINISH_TIMEOUT:.0f} s; "
                f"send the rest with `{self.sync}`",
            )
        self.wandb.teardown()  # Wait for W&B's process, which closes its file when it ends.

    def _log_panels(self, summary: Result, step: int) -> None:
        """Log the curves of the result as tables and plots."""
        panels = curve_tables(summary.record).items()
        tables = {
            f"{key}_table": self.wandb.Table(columns, rows) for key, (columns, rows) in panels
        }
        self.log_metrics(tables, step)

    def _log_checkpoint(self) -> None:
        """Upload the reported checkpoint as an artifact."""
        path = self.run.reported_checkpoint()
        artifact = self.wandb.Artifact(f"model-{self.run.provenance.id}", type="model")
        artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)  # no copy
        self.experiment.log_artifact(artifact, aliases=["latest", path.stem])

    def _send(self, task_name: str, task: Callable[[], None]) -> None:
        """Run ``task`` for at most ``SEND_TIMEOUT`` seconds; log a line if it fails or hangs."""
        problems = [f"no answer within {SEND_TIMEOUT:.0f} s"]

        def work() -> None:
            try:
                task()
                problems.clear()
            except Exception as error:
                problems[0] = error_line(error)

        sending = threading.Thread(target=work, name=f"wandb {task_name}", daemon=True)
        sending.start()
        sending.join(SEND_TIMEOUT)
        for problem in [*problems]:
            log_line(
                None,
                f"W&B: upload of {task_name} failed ({problem}); it is still in {self.run.path}",
            )


def wandb_mode(node: Mapping[str, Any]) -> str:
    """Return the mode of W&B: "online", "offline" or "disabled".

    This is the configured mode; for "auto", WANDB_MODE or, without it, "online" if there is an API
    key.
    """
    mode = str(node.get("mode", "auto"))
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "")
    if mode in ("online", "offline", "disabled"):
        return mode
    return "online" if logged_in() else "offline"


def logged_in() -> bool:
    """Return whether W&B has an API key; no request is sent."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    own_host = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname or "wandb"
    names = re.compile(f"wandb|coreweave|{re.escape(own_host)}")
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        hosts = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
        return any(map(names.search, hosts))
    return False


def describe_run(node: Mapping[str, Any], config: Config, run: RunDirectory) -> Entries:
    """Return the arguments of ``wandb.init`` that describe a run.

    The runs of a sweep form a group and are named like their directories.
    """
    sweep, provenance = recorded_sweep_name(run), run.provenance
    choices = provenance.choices
    own_tags = node.get("tags") or []
    tags = [own_tags] if isinstance(own_tags, str) else [*own_tags]
    tags += [f"{group}={choices[group]}"[:64] for group in GROUPS if choices.get(group)]
    resolved = dict(config)
    resolved.pop("logger", None)  # It may contain addresses of other logging servers.
    defaults = {
        "entity": None,
        "project": "triptych",
        "name": run.path.name,
        "group": sweep,
        "job_type": "cell" if sweep else "run",
        "notes": mask_password(shlex.join(provenance.command)),
    }
    return defaults | {
        **{key: node[key] for key in defaults if node.get(key)},
        "tags": list(dict.fromkeys(tags)),
        "id": provenance.id,
        "config": grouping_settings(choices, config, provenance.overrides) | {RESOLVED: resolved},
    }


def end_service() -> None:
    """Kill W&B's service process; otherwise this process would wait for it when it exits."""
    # The service may have ended already, or another version of wandb may have other internals.
    with contextlib.suppress(Exception, SystemExit):
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import module

        connection: Any = wandb_setup.singleton()._connection
        connection._proc._process.kill()
        module.unset_globals()
        wandb_setup.teardown()


def import_wandb(folder: Path) -> Any:
    """Import W&B, with ``folder`` in place of the home for its data, cache and settings."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's error telemetry prints errors.
    for variable, name in FOLDERS.items():
        if variable not in os.environ or variable in _set_variables:
            _set_variables.add(variable)
            os.environ[variable] = str(folder / name)
    import wandb

    module: Any = wandb
    # Ignore `wandb/settings` files in the run's or current folder: an untrusted one could send
    # your API key to another server.
    module.Settings.update_from_system_settings = lambda _: None
    from wandb.sdk.data_types._private import MEDIA_TMP

    # A forked process removes this folder when it ends, so create it again.
    os.makedirs(MEDIA_TMP.name, 0o700, exist_ok=True)
    return module
