"""The steps of a run: build, fit, evaluate the bound, draw samples, compute metrics, record.

``execute`` calls ``train``, and handles the lock, signals, other ranks and failures.
"""

import contextlib
import time

import torch

from triptych.callbacks.metrics import item_metrics_callback
from triptych.data.build import leakage_warnings
from triptych.errors import UserError
from triptych.run.account import account_splits, choose_weights, describe_accounts, peak_memory
from triptych.run.build import build_experiment
from triptych.run.directory import RunDirectory, log_line
from triptych.run.experiment import Experiment
from triptych.run.final import draw_final_samples
from triptych.run.fit import build_fit, fit_model
from triptych.run.initialization import Origin, find_origin, initialise
from triptych.run.loggers import close_loggers_on_exit
from triptych.run.model import set_up_process
from triptych.run.parsing import to_float
from triptych.run.pictures import log_picture
from triptych.run.processes import check_cpu_processes, rank
from triptych.run.progress import Progress
from triptych.run.provenance import timestamp
from triptych.run.result import Result
from triptych.run.session import Session
from triptych.run.shared_fit import offer_fit
from triptych.run.untrusted import is_composed_here, reraise_as_foreign_checkpoint


def train(session: Session) -> Result:
    """Train a run's model, evaluate it, draw samples, and record the result."""
    run, config = session.run, session.run.config()
    progress = Progress(run, bar=config["trainer"].get("enable_progress_bar", True))
    if not (run / "progress.json").exists():  # A refused start leaves an earlier place as it was.
        progress.write("build", 0, config["trainer"]["max_steps"] or 0)
    log_line(run, check_cpu_processes(config["trainer"]))
    set_up_process(config)

    # Build the data, the model, its sampler and sample metrics, and the fit.
    experiment = build_experiment(config, download=is_composed_here(run))
    origin = find_start(run, experiment)
    fit = build_fit(session, experiment, origin, progress)
    trainer = fit.trainer

    with close_loggers_on_exit(trainer.loggers, run), session.peers:
        # Fit.
        session.peers.start(trainer)
        if rank() == 0:
            run.begin()
        fit_model(fit, run, experiment, origin)
        session.fitted = True
        offer_fit(run, origin.fit, peak_memory(fit.device))
        progress.write("test", trainer.global_step, trainer.max_steps)

        # Evaluate: choose the weights to report, and compute their bound over each split.
        checkpoint, averaging = choose_weights(session, fit, experiment, origin)
        began = time.perf_counter()
        accounts = account_splits(checkpoint, fit)
        test_seconds = time.perf_counter() - began
        memory = max(peak_memory(fit.device), to_float(run.provenance.fit_memory))

        # Draw samples, and compute their metrics.
        step = trainer.global_step or checkpoint.step
        began = time.perf_counter()
        drawn = draw_final_samples(checkpoint, trainer.strategy, step, session.peers.stop_watching)
        for name, picture in drawn.pictures.items():
            log_picture(trainer.loggers, name, picture, trainer.global_step)
        sample_seconds = time.perf_counter() - began

        # Record.
        trainer.loggers[0].finalize("success")  # metrics.csv is complete before summary.json
        entries = {
            "name": config["name"] or "",
            "seed": config["seed"],
            "steps": step,
            "seconds": {
                "fit": round(fit.saver.seconds, 2),
                "test": round(test_seconds, 2),
                "samples": round(sample_seconds, 2),
            },
            "cost": {"memory": memory} | drawn.evaluations,
            "device": fit.device_name,
            "draws": experiment.model.random.name,
            "world_size": trainer.world_size,
            "averaging": averaging,
            "data": origin.data_summary,
            "metrics": item_metrics_callback(trainer).better or None,
            "ended": timestamp(),
        }
        figures = describe_accounts(checkpoint, accounts)
        return session.record("finished", drawn.entries | figures | entries)


def find_start(run: RunDirectory, experiment: Experiment) -> Origin:
    """Find the state that the run starts from, and copy weights if ``init_from`` is set."""
    config, data = experiment.config, experiment.data
    seed = torch.initial_seed()
    origin = find_origin(run, experiment)
    if origin.start is None and seed != config["seed"]:
        raise UserError(
            f"seed={config['seed']}: your code calls torch.manual_seed({seed}) in a constructor; "
            "use a torch.Generator instead"
        )
    data.remember()
    if rank() == 0:
        with contextlib.suppress(OSError):
            print(f"data: {origin.data_summary['description']}", flush=True)
    for line in leakage_warnings(origin.data_summary):
        log_line(run, line)
    if origin.initial is not None:
        with reraise_as_foreign_checkpoint(f"init_from={config['init_from']}"):
            initialise(run, config, experiment.model, origin.initial)
    return origin
