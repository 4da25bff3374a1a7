"""W&B as a mirror of metrics.csv, filled by a thread of its own: it can neither hold up a run nor end one.

A row of W&B's history is a row of the table, under the same step. On resume, rows that W&B does not have are
sent again from the table, which is exact over kills:

offline   the new directory holds the whole history, and takes the place of those before it that nobody has
          sent; if one was sent, it holds what comes after
online    W&B says where its history ends, and gets what comes after
"""

import contextlib
import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import DummyExperiment

from triptych.runs.directory import RunDirectory
from triptych.runs.metrics import MetricsCsv
from triptych.runs.processes import rank
from triptych.training.follower import Follower, line, say
from triptych.training.wandb_content import LINE, STEP, chart, figures, panels
from triptych.training.wandb_files import directories, discard, is_sent, last_step

INIT, FINISH = 5.0, 30.0  # seconds that W&B has to answer at first, and to take what is left at the end
PANELS = 10.0  # to take the panels, before that
BOUNDS = ("val/bound", "val/bpd", "val/nats_per_dim", "val/cross_entropy")  # lowest is best
FOLDERS = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache", "WANDB_CONFIG_DIR": "config"}
# These make a temporary directory when they are imported.
MAKERS = ("wandb", "wandb.sdk.artifacts.artifact", "wandb.sdk.data_types._private")
_ours: set[str] = set()  # of these variables, those that a run of this process has set


class Mirror(Follower):
    """Sends the rows of ``table`` to W&B, each with its pictures.

    Args:
        mode: "online" or "offline"; online becomes offline, with one line, where W&B does not answer.
        about: arguments of ``wandb.init``.
        artifacts: whether W&B gets the checkpoint that is reported, and is told whose model was used.
        every: seconds between two looks at the table.
    """

    title, name = "W&B", "wandb"

    def __init__(
        self,
        run: RunDirectory,
        table: MetricsCsv,
        mode: str,
        about: dict,
        artifacts: bool = False,
        every: float = 2.0,
    ):
        super().__init__(run, table, every)
        self.mode, self.about, self.artifacts = mode, about, artifacts
        self._wandb: Any = None  # W&B's run; the worker's alone, but for ``experiment``
        self._first = 0  # W&B has the rows before this step
        self._pictures: dict[int, dict[str, Path]] = {}
        self._defined: set[str] = set()

    @property
    def version(self) -> str:
        return str(self.about.get("id", ""))

    @property
    def experiment(self) -> Any:
        """W&B's run, for callbacks of your own; one that ignores everything where there is none."""
        if self._worker is not None:
            self._started.wait(INIT + FINISH)
        return DummyExperiment() if self._wandb is None or self.lost else self._wandb

    @property
    def directory(self) -> Path | None:
        """Where W&B keeps this run's files, once it has begun."""
        return None if self._wandb is None else Path(self._wandb.settings.sync_dir)

    @property
    def _sync(self) -> str:
        """The command that sends this run's files; an online run's are passed over unless it is told."""
        return f"wandb sync {'--include-online ' if self.mode == 'online' else ''}{self.directory}"

    # what the run calls -----------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        if rank() != 0:
            return
        for at, path in self.drawn(step):
            self.log_picture("samples", path, at)
        super().begin(step)
        self._queue.put(lambda: discard(self._older))  # the new directory has their rows

    def log_picture(self, key: str, path: Path, step: int) -> None:
        """A picture that goes with a step's row."""
        self._pictures.setdefault(step, {})[key] = path

    def whereabouts(self) -> dict[str, str]:
        """{"mode", "files", "sync"}: for ``summary.json``; {} where W&B has not begun."""
        if self._worker is not None:
            self._started.wait(INIT + FINISH)
        if (directory := self.directory) is None:
            return {}
        files = os.path.relpath(directory, self.run.path)
        return {"mode": self.mode, "files": files, "sync": self._sync}

    # what a follower is asked -------------------------------------------------------------------------

    @property
    def last(self) -> int:
        return max([self.table.last, *self._pictures])

    def patience(self, ok: bool) -> float:
        return INIT + FINISH + 10 if ok else 10

    def hand_over(self, until: int) -> None:
        rows = self.table.rows(self._queued, until)
        steps = sorted({*rows, *(s for s in self._pictures if s <= until)})
        self._queued = max(self._queued, until)
        if steps:
            ready = [(step, rows.get(step, {}), self._pictures.pop(step, {})) for step in steps]
            self._queue.put(lambda: self._log(ready))

    def _lose(self, why: str) -> None:
        if not self.lost:
            super()._lose(why)
            _end_service()

    # the worker's -----------------------------------------------------------------------------------

    def start(self, step: int) -> None:
        wandb = _import(self.run / "wandb")
        before = directories(self.run / "wandb")
        self._older = [path for path in before if not is_sent(path)]
        have = max((last_step(path) for path in before if is_sent(path)), default=-1)
        why = ""
        if self.mode == "online":
            try:
                self._wandb = self._init(wandb, "online", resume="allow")
                self._first = self._wandb.starting_step
            except Exception as error:
                why = line(error)
                _end_service()  # it would go on trying, and not give the run's id to another
                discard([path for path in directories(self.run / "wandb") if path not in before])
                self.mode = "offline"
        if self._wandb is None:
            # without resume, steps stay as given; with it, a sync would count them on from W&B's last
            self._wandb = self._init(wandb, "offline")
            self._first = have + 1
        if why:
            say(f"W&B: offline ({why}); `{self._sync}` sends the run when it has ended")
        self._wandb.define_metric(STEP, hidden=True)
        if self.artifacts and (trained := self.run.config().get("trained")):
            self._log_checkpoint(wandb, RunDirectory(trained), use=True)

    def _init(self, wandb: Any, mode: str, **more: Any) -> Any:
        asked = {
            "console": "off",
            "silent": True,
            "init_timeout": INIT,
            "finish_timeout": FINISH,
            "finish_timeout_raises": True,
            "x_transaction_log_flush_interval": 2.0,
        }
        known = {k: v for k, v in asked.items() if k in wandb.Settings.model_fields}
        settings = wandb.Settings(**known)
        if not os.environ.get("WANDB_MODE"):
            os.environ.pop("WANDB_MODE", None)  # W&B refuses an empty one
        return wandb.init(dir=str(self.run.path), mode=mode, settings=settings, **self.about, **more)

    def _log(self, ready: list[tuple[int, dict, dict]]) -> None:
        import wandb

        for step, row, pictures in ready:
            if step >= self._first:
                record: dict[str, Any] = {name: float(value) for name, value in row.items()}
                record |= {k: wandb.Image(str(path)) for k, path in pictures.items() if path.exists()}
                self._define(record)
                self._wandb.log(record | {STEP: step}, step=step)

    def _define(self, names: Iterable[str]) -> None:
        """Each name when it is first met: over the training step, and of a bound the lowest is kept.

        Patterns ("val/*") would say it at once, but W&B lets them hide what is said of one of their names.
        """
        for name in [name for name in names if name not in self._defined]:
            self._defined.add(name)
            kept = {"summary": "min,last"} if name in BOUNDS else {}
            self._wandb.define_metric(name, step_metric=STEP, **kept)

    def finish(self, ok: bool, final: dict[str, float], step: int) -> None:
        import wandb

        summary = (self.run.summary() or {}) if ok else {}
        if summary:
            self._close_last_row(wandb, summary)
            self._wandb.summary.update(figures(summary))
            if self.artifacts:
                self._log_checkpoint(wandb, self.run)
        try:
            self._wandb.finish(exit_code=0 if ok else 1)
        except TimeoutError:
            say(f"W&B has not taken all within {FINISH:.0f} s; `{self._sync}` sends the rest")
        wandb.teardown()  # waits for W&B's process, which closes its file as it ends

    def _log_checkpoint(self, wandb: Any, source: RunDirectory, use: bool = False) -> None:
        """The checkpoint by which ``source`` reports as an artifact; ``use``: of which this run is a user.

        W&B tells versions apart by content: the version that ``source`` itself has logged, or will, and this
        one are the same, offline too, where W&B could not be asked for it by name.
        """
        path = source.reported()

        def log() -> None:
            artifact = wandb.Artifact(artifact_name(source), type="model")
            artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)  # no copy
            # of W&B's public methods, use_artifact refuses to work offline
            how = {"use_after_commit": True} if use else {"aliases": ["latest", path.stem]}
            self._wandb._log_artifact(artifact, is_user_created=True, **how)

        if why := _within(PANELS, log):
            say(f"W&B has not taken the checkpoint ({why}): {path}")

    def _close_last_row(self, wandb: Any, summary: dict) -> None:
        """Panels go into the last row. It ends here: later, it would put its means over the summary's."""
        last = max(self._queued, self._first)
        row: dict[str, Any] = {STEP: last}

        def with_panels() -> None:
            charts = {key: _chart(wandb, key, c, rows) for key, (c, rows) in panels(summary).items()}
            self._define(f"{key}_table" for key in charts)
            self._wandb.log(row | charts, step=last, commit=True)

        # a table asks the server, and goes on asking one that is gone; a row is written down and sent later
        if why := _within(PANELS, with_panels):
            say(f"W&B has not taken the panels ({why}): summary.json has them")
            self._wandb.log(row, step=last, commit=True)


def _chart(wandb: Any, key: str, columns: list[str], rows: list[list]) -> Any:
    """A panel as a line, on the run's own page; its table is logged as ``key`` and "_table"."""
    x, y = chart(columns)
    table = wandb.Table(columns=list(columns), data=rows)
    words = {"title": key.removeprefix("panels/").replace("_", " ")}
    return wandb.plot_table(LINE, table, {"x": x, "y": y}, words)


def artifact_name(run: RunDirectory) -> str:
    """Of the checkpoint by which ``run`` reports, as an artifact of W&B's."""
    return f"model-{run.provenance()['id']}"


def _within(seconds: float, task: Callable[[], None]) -> str:
    """Do ``task``; why it is not done, or not after so long a time, "" if it is."""
    why = [f"no answer within {seconds:.0f} s"]

    def work() -> None:
        try:
            task()
            why[0] = ""
        except Exception as error:
            why[0] = line(error)

    thread = threading.Thread(target=work, name="wandb panels", daemon=True)
    thread.start()
    thread.join(seconds)
    return why[0]


def _import(folder: Path) -> Any:
    """W&B's module, with what it would put into the home directory and into /tmp in ``folder`` instead."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own telemetry, which speaks where it fails
    for variable, name in FOLDERS.items():
        if variable not in os.environ or variable in _ours:
            _ours.add(variable)
            os.environ[variable] = str(folder / name)
    temporary = folder / "tmp"
    if "wandb" not in sys.modules:
        discard([temporary])  # what a kill has left
    temporary.mkdir(parents=True, exist_ok=True)
    earlier, tempfile.tempdir = tempfile.tempdir, str(temporary)
    try:
        for name in MAKERS:
            importlib.import_module(name)
        return sys.modules["wandb"]
    finally:
        tempfile.tempdir = earlier


def _end_service() -> None:
    """Kill W&B's process and forget it: at the end of ours, W&B would wait for it, or complain of it."""
    with contextlib.suppress(Exception, SystemExit):  # not there any more, or its inside has changed
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import module

        connection: Any = wandb_setup.singleton()._connection
        connection._proc._process.kill()
        module.unset_globals()
        wandb_setup.teardown()
