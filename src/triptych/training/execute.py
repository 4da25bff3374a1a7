"""Execute the run that a directory records: build, fit, choose weights, account, sample, sum up."""

import contextlib
import math
import time
import traceback

import pytorch_lightning as pl
import torch

from triptych.callbacks.checkpointing import LAST, Keep, choose
from triptych.callbacks.gradients import Gradients
from triptych.callbacks.progress import Progress
from triptych.callbacks.samples import SampleGrid, log_picture
from triptych.callbacks.stopping import Stop, requeue
from triptych.config.build import build, check_targets
from triptych.data.fingerprint import fingerprint
from triptych.errors import Diverged, Interrupted, StorageError, UserError
from triptych.models.assemble import build_data, build_model
from triptych.quiet import quiet
from triptych.runs.changed import check_data, remember, say
from triptych.runs.checkpoints import load_weights, newest_readable, read_checkpoint
from triptych.runs.directory import RunDirectory, write_atomic
from triptych.runs.processes import rank
from triptych.runs.provenance import add_execution
from triptych.runs.strangers import is_own
from triptych.runs.summary import diverged, failed, finished
from triptych.runs.trained import take_over
from triptych.sampling.draw import draw
from triptych.sampling.guided import guided
from triptych.sampling.measure import check, measure
from triptych.sampling.pictures import save
from triptych.sampling.posterior_mean import posterior_mean
from triptych.training.account import account
from triptych.training.averaging import check_averaging, compare_averages
from triptych.training.baselines import baselines
from triptych.training.items import write_items
from triptych.training.logging import build_loggers, close_loggers, take_up_rows, whereabouts
from triptych.training.peers import Peers, is_broken_connection, leave_error
from triptych.training.trainer import build_trainer, check_shares
from triptych.training.untrained import keep_untrained, trainable

PATIENCE = 5.0  # seconds that a job may need to let go of its directory after its sweep was killed


def execute(run: RunDirectory) -> dict:
    """Bring a run to its end and return its summary; a finished run is returned as it is.

    Raises:
        Busy: another process holds the directory.
        Interrupted: asked to stop, or one of its processes was killed; the run can go on.
        Diverged: something is not finite; recorded as such.
        StorageError: it cannot be written; the run can go on.
        UserError: the configuration cannot be built; recorded as a failed run.
        Exception: whatever else stopped it, recorded with its traceback in train.log.
    """
    stage = {"now": "build"}
    if rank() != 0:  # works under rank 0's lock, and leaves the telling to it
        with Stop() as stop:
            try:
                return _execute(run, stop, stage, None)
            except Diverged:
                raise
            except Exception as error:
                if not is_broken_connection(error):
                    _log_traceback(run)
                    leave_error(run, error)
                raise
    with run.lock(PATIENCE), Stop() as stop:
        if run.status == "finished":
            return run.summary() or {}
        with contextlib.suppress(OSError):
            (run / "summary.json").unlink(missing_ok=True)  # of a failure that is tried again
        run.sweep_up()
        peers = Peers(run, lambda error: _record_failure(run, stage["now"], error))
        try:
            return _execute(run, stop, stage, peers)
        except Interrupted as asked:
            requeue(asked)
            raise
        except StorageError:
            raise  # nothing is wrong with the run: it goes on when there is room
        except Diverged as found:
            run.write("summary.json", diverged(run.provenance(), stage["now"], found))
            raise
        except Exception as error:
            reason = peers.reason(error)
            if isinstance(reason, Exception):
                _record_failure(run, stage["now"], reason)
            if reason is error:
                raise
            raise reason from None
        finally:
            if run.status != "finished":
                peers.end()


def _execute(run: RunDirectory, stop: Stop, stage: dict, peers: Peers | None) -> dict:
    config, provenance = run.config(), run.provenance()
    quiet()
    progress = Progress(run)
    if rank() == 0:
        progress.write("build", 0, config["trainer"]["max_steps"])
    torch.set_num_threads(config["threads"])
    check_targets(config)
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    data = build_data(config, download=is_own(run))
    model = build_model(config, data)
    model.config = config
    sampler = build(config["sampler"], "sampler")
    loggers = build_loggers(config, provenance, run)
    samples = config["samples"] if model.draws else config["samples"] | {"n": 0}
    check(model, data, config)
    tested = config.get("test", True)
    if not tested and not len(data.splits["val"]):
        raise UserError("test=false: a validation set is needed (data.val_size=0 leaves nothing to report)")
    monitor = f"val/{model.accounting.unit}" if len(data.splits["val"]) else None
    keep = Keep(run, monitor, config["trainer"]["val_check_interval"], stop)
    gradients = Gradients(config["trainer"]["gradient_clip_val"])
    sharded = str(config["trainer"]["strategy"]).startswith("fsdp")  # no process has a whole gradient
    callbacks = [
        *([] if sharded else [gradients]),
        *(build(node, f"callbacks.{name}") for name, node in config["callbacks"].items() if node),
        SampleGrid(sampler, data, run / "samples", n=min(16, samples["n"]), pictures=samples["pictures"]),
        progress,
        stop,
        keep,  # last: what the others have done after a step is in its checkpoint
    ]
    check_averaging(config, callbacks, validated=monitor is not None)
    trainer = build_trainer(config, run, callbacks, loggers, peers)
    check_shares(config, trainer)
    start = newest_readable(run.checkpoints())
    if start is not None and start.name != LAST and rank() == 0:
        write_atomic(start.with_name(LAST), start.read_bytes())  # it is the last that counts
    kept = read_checkpoint(start) if start else None
    step = kept["global_step"] if kept else 0
    now = fingerprint(data)
    model.seen = check_data(run, now, kept)
    taken = take_over(run, config, now, write=rank() == 0) if config.get("trained") else None
    if taken is not None:
        model.seen = remember(now, taken["triptych"].get("data"))
    facts = {key: value for key, value in model.seen.items() if key != "items"}
    take_up_rows(loggers, step)
    if rank() == 0:
        say(run, add_execution(run, _device(trainer), trainer.world_size, step, config, facts))
    ok = False
    try:
        stage["now"] = "fit"
        if taken is None and trainable(model):
            trainer.fit(model, data, ckpt_path=start)
        elif taken is None and rank() == 0:
            keep_untrained(run, model)
        stage["now"] = "test"
        if trainer.is_global_zero:
            progress.write("test", trainer.global_step, trainer.max_steps)
        chosen = choose(run, config["checkpoint"])
        checkpoint = taken or read_checkpoint(chosen)
        averaging = {} if taken else compare_averages(trainer, model, data, checkpoint, chosen)
        load_weights(model, checkpoint, config["weights"])
        began = time.perf_counter()
        figures = account(trainer, model, data, test=tested)
        _check_finite(figures, model.accounting.unit, trainer.global_step)
        if peers:
            peers.needed_no_more()
        summary = finished(
            provenance,
            config,
            parameters=sum(p.numel() for p in model.parameters()),
            steps=trainer.global_step or checkpoint["global_step"],  # of the model, whoever trained it
            seconds={"fit": round(keep.seconds, 2), "test": round(time.perf_counter() - began, 2)},
            device=_device(trainer),
            world_size=trainer.world_size,
            weights=config["weights"],
            checkpoint=str(chosen.relative_to(run.path)),
            **averaging,
            data=facts,
            **figures,
            gradient=gradients.figures(),
            **(baselines(data) if model.draws and tested else {}),
            **model.panels(),
            **posterior_mean(model, data, config["seed"]),
            samples=_final_samples(run, model, sampler, data, config, samples["n"], loggers, trainer),
            **(measure(model, data, config) if trainer.is_global_zero and model.draws and tested else {}),
            **whereabouts(loggers),
        )
        if trainer.is_global_zero:
            if tested:
                write_items(run / "items.npz", model)  # of the test set, accounted last
            run.write("summary.json", summary)
        ok = True
    finally:
        if peers:
            peers.needed_no_more()  # the others may be gone before the loggers are done
        close_loggers(loggers, ok)
    return summary


def _check_finite(figures: dict, unit: str, step: int) -> None:
    for split in ("val", "test", "train"):
        bound = figures.get(split, {}).get(unit)
        if bound and not math.isfinite(bound["mean"]):
            raise Diverged(f"the bound of the {split} set", step)


def _final_samples(run, model, sampler, data, config, n, loggers, trainer) -> str | None:
    if n < 1 or not trainer.is_global_zero:
        return None
    picture = run / "samples" / "final.png"
    x = draw(model, sampler, data, n, seed=0, guided=guided(model, data, config))
    save(x, data, picture)
    torch.save({"x": x}, run / "samples" / "final.pt")
    log_picture(loggers, "samples/final", picture, trainer.global_step)
    return str(picture.relative_to(run.path))


def _device(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _record_failure(run: RunDirectory, stage: str, error: Exception) -> None:
    line = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    if not isinstance(error, UserError):
        _log_traceback(run)
    run.write("summary.json", failed(run.provenance(), stage, " ".join(line.split())[:1000]))


def _log_traceback(run: RunDirectory) -> None:
    with contextlib.suppress(OSError), open(run / "train.log", "a") as log:
        log.write(traceback.format_exc())
