"""Execute the run that a directory records: build, fit, choose weights, evaluate, sample, record."""

import contextlib
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch

from triptych.callbacks.metrics import metrics_of
from triptych.config.build import check_targets
from triptych.config.identity import unread_threads
from triptych.config.metric import measures_of, version_of
from triptych.config.own_code import raised_at
from triptych.data.build import leakage
from triptych.errors import Diverged, ForeignCheckpoint, Interrupted, StorageError, Unreadable, UserError
from triptych.files import no_link
from triptych.run.account import (
    account_splits,
    baselines,
    check_finite,
    choose_weights,
    log_account,
    peak_memory,
    write_items,
)
from triptych.run.build import build_experiment
from triptych.run.directory import RunDirectory, log_line
from triptych.run.drawing import Experiment
from triptych.run.final import draw_final
from triptych.run.fit import Fit, build_fit
from triptych.run.initialization import Origin, find_origin, initialise, offer_fit
from triptych.run.loggers import closing
from triptych.run.model import set_up_torch
from triptych.run.new_process import FailedCall, remember_environment
from triptych.run.parsing import load_config, to_float
from triptych.run.processes import SWEEP, rank
from triptych.run.progress import Progress
from triptych.run.provenance import add_missing_id, check_imported, timestamp
from triptych.run.result import Result
from triptych.run.sampling.measure import FOLDER
from triptych.run.sampling.pictures import log_picture
from triptych.run.stopping import Peers, Stop, failure_line, is_broken_connection, leave_error, requeue
from triptych.run.untrusted import interpreting, is_composed_here

FEW = 10  # validation items, of which a mean says little
COMPILER = ("torch._dynamo.", "torch._inductor.")
PATIENCE = 5.0  # seconds that a job may need to let go of its directory after its sweep was killed


def execute(run: RunDirectory) -> Result:
    """Execute a run to its end and return its result; a finished run's is returned unchanged.

    Interrupted, Busy (another process holds it), StorageError, ForeignCheckpoint and Unreadable: the run can
    go on. Diverged, UserError (it
    cannot be built; a directory just made is removed) and others are recorded.
    """
    remember_environment()
    if rank() != 0:  # works under rank 0's lock, which reports for all
        with Stop() as stop:
            try:
                return Session(run, stop).run()
            except Exception as error:
                if not isinstance(error, Diverged) and not is_broken_connection(error):
                    _log_traceback(run)
                    leave_error(run, error)
                raise
    with run.lock(PATIENCE), Stop() as stop:
        recorded = run.read_records()
        if recorded is not None and recorded.status == "finished":
            return recorded
        run.clear_failure()
        add_missing_id(run)
        run.sweep_up()
        session = Session(run, stop)
        session.peers = peers = Peers(run, session.record_failure)
        try:
            return session.run()
        except Interrupted as stopped:
            if not run.config()["name"] and not os.environ.get(SWEEP):  # its command makes another directory
                stopped.fix = f"triptych-train resume={run.path} goes on"
            requeue(stopped)
            raise
        except (StorageError, ForeignCheckpoint, Unreadable):
            raise  # the run itself goes on once there is room, or its files are restored
        except Diverged as error:
            session.record("diverged", error=str(error), step=error.step)
            raise
        except Exception as error:
            if stop.received is not None and type(error).__module__.startswith(COMPILER):
                raise Interrupted(stop.received) from None  # the signal went to the compiler's processes, too
            reason = peers.reason(error)
            if isinstance(reason, Exception):
                session.record_failure(reason)
            if session.stage == "build" and is_composed_here(run):
                run.discard()
            if reason is error:
                raise
            raise reason from None
        finally:
            if run.status != "finished":
                peers.end()


@contextlib.contextmanager
def _no_exit() -> Iterator[None]:  # the command would end as if the run had finished
    try:
        yield
    except SystemExit as left:
        if isinstance(left.__context__, KeyboardInterrupt):  # Lightning's answer to Ctrl-C
            raise
        raise RuntimeError(f"sys.exit({left.code}) ended the run") from left


class Session:
    """One execution of a run, in one of its processes; ``peers``: in the first process, the others."""

    def __init__(self, run: RunDirectory, stop: Stop):
        self.directory, self.stop = run, stop
        self.fitted = False
        self.peers: Peers | None = None

    @property
    def stage(self) -> str:
        """ "build" until training begins, "fit", or "test"; for the record of a failure."""
        return "test" if self.fitted else "fit" if self.stop.began else "build"

    @_no_exit()
    def run(self) -> Result:
        run, peers, config = self.directory, self.peers, self.directory.config()
        progress = Progress(run, bar=config["trainer"].get("enable_progress_bar", True))
        if rank() == 0:
            progress.write("build", 0, config["trainer"]["max_steps"] or 0)
        set_up_torch(config["threads"])
        log_line(run, unread_threads(config["threads"], run.provenance.overrides))
        check_targets(config)
        check_imported(config)
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        experiment = build_experiment(config, download=is_composed_here(run))
        seeded = torch.initial_seed()
        origin = find_origin(run, config, experiment.data, experiment.model)
        if seeded != config["seed"] and origin.start is None:
            problem = f"code of your own calls torch.manual_seed({seeded}) while it is built"
            raise UserError(f"seed={config['seed']}: {problem}; draw from a torch.Generator")
        experiment.data.remember()
        _describe(run, experiment, origin)
        if origin.initial is not None:
            with interpreting(f"init_from={config['init_from']}"):
                initialise(run, config, experiment.model, origin.initial)
        fit = build_fit(run, experiment, origin, progress, self.stop, peers)
        with closing(fit.trainer.loggers, run), contextlib.ExitStack() as stack:
            if peers:
                stack.callback(peers.stop_watching)  # they may be gone before loggers
            fit(run, experiment, origin)
            self.fitted = True
            if rank() == 0:
                offer_fit(run, origin.fit, peak_memory(fit.trainer.strategy.root_device))
                progress.write("test", fit.trainer.global_step, fit.trainer.max_steps)
            figures = _report(run, experiment, origin, fit, peers)
            if rank() == 0:
                fit.trainer.loggers[0].finalize("success")  # metrics.csv, whose digest is recorded
            return self.record("finished", name=config["name"] or "", seed=config["seed"], **figures)

    def record(self, status: str, **entries: Any) -> Result:
        """Write the result on rank 0; a run that did not finish also records its ``stage``."""
        about = {} if status == "finished" else {"stage": self.stage}
        result = Result.of(self.directory.provenance, status, **about | entries)
        if rank() != 0:
            return result
        result = self.directory.record(result)
        if status != "failed":  # what was drawn is needed no more
            shutil.rmtree(self.directory / FOLDER, ignore_errors=True)
        return result

    def record_failure(self, error: Exception) -> None:
        """Record why the run failed; tracebacks of unexpected errors go to ``train.log``."""
        if not isinstance(error, UserError) or isinstance(error, FailedCall) or raised_at(error):
            _log_traceback(self.directory)
        self.record("failed", error=failure_line(error)[:1000])


def _describe(run: RunDirectory, experiment: Experiment, origin: Origin) -> None:
    if rank() == 0:
        with contextlib.suppress(OSError):
            print(f"data: {origin.facts['description']}", flush=True)
    few = len(experiment.data.splits["val"])
    note = f"validation: {few} items, too few to choose a setting or a moment by" if 0 < few < FEW else ""
    for line in (*leakage(origin.facts), note):
        log_line(run, line)


def _report(
    run: RunDirectory, experiment: Experiment, origin: Origin, fit: Fit, peers: Peers | None
) -> dict[str, Any]:
    data, trainer = experiment.data, fit.trainer
    checkpoint, averaging = choose_weights(run, fit, experiment, origin)
    tested = checkpoint.config.get("test", True)
    began = time.perf_counter()
    accounts = account_splits(checkpoint)
    for split, account in accounts.items():
        log_account(fit, "test/" if split == "test" else f"final/{split}_", account)
    for split in filter(accounts.get, ("val", "test", "train")):
        check_finite(accounts[split], split, trainer.global_step)
    last = accounts[split := next(reversed(accounts))]
    for name in metrics_of(trainer).metrics:
        figure = last.figures[name]
        if figure["n"] < (items := len(data.splits[split])):
            log_line(run, f"metric {name}: {figure['n']} of {items} items of {split} have a value")
    if trainer.is_global_zero and tested:
        write_items(run / "items.npz", last)
    # of the whole fit, whose costs these are, also with checkpoint=best
    step = trainer.global_step or checkpoint.content["global_step"]
    seconds = {"fit": round(fit.keep.seconds, 2), "test": round(time.perf_counter() - began, 2)}
    memory = max(peak_memory(trainer.strategy.root_device), to_float(run.provenance.fit_memory))
    drawn, pictures = draw_final(checkpoint, trainer.strategy, step)
    for name, picture in pictures.items():
        log_picture(trainer.loggers, name, picture, trainer.global_step)
    return {
        "steps": step,
        "seconds": seconds,
        "cost": {"memory": memory} | drawn.pop("evaluations", {}),
        "device": fit.device,
        "world_size": trainer.world_size,
        "weights": checkpoint.config["weights"],
        "checkpoint": str(checkpoint.path.relative_to(run.path)),
        **averaging,
        "data": origin.facts,
        **{split: one.figures for split, one in accounts.items()},
        "noise_levels": last.noise_levels,
        **({"estimator": last.estimator} if last.estimator else {}),
        "metrics": metrics_of(trainer).better or None,
        "versions": {name: version_of(name) for name in measures_of(load_config(run / "config.yaml"))},
        **(baselines(data) if experiment.model.draws and tested else {}),
        **drawn,
        "ended": timestamp(),
    }


def _log_traceback(run: RunDirectory) -> None:
    with contextlib.suppress(OSError), open(run / "train.log", "a", opener=no_link) as log:
        log.write(traceback.format_exc())
