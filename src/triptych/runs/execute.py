"""Execute the run that a directory records: build, fit, choose weights, account, sample, sum up."""

import os
import time
import traceback
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from triptych.callbacks.progress import Progress
from triptych.callbacks.samples import SampleGrid, draw, log_picture, save
from triptych.config.build import build, check_targets
from triptych.config.names import cores
from triptych.data.base import DataModule
from triptych.errors import UserError
from triptych.models.assemble import build_data, build_model
from triptych.models.diffusion import Diffusion
from triptych.runs.checkpoints import AtomicCheckpointIO, load_weights, newest_readable, read_checkpoint
from triptych.runs.directory import RunDirectory
from triptych.runs.logging import build_loggers, close_loggers
from triptych.runs.metrics import MetricsCsv
from triptych.runs.quiet import quiet
from triptych.runs.summary import failed, finished

WEIGHT_POINTS = 60


def execute(run: RunDirectory) -> dict:
    """Bring a run to its end and return its summary; a finished run is returned as it is.

    Raises:
        UserError: the configuration cannot be built; recorded as a failed run.
        Exception: whatever stopped the fit, recorded with its traceback in train.log.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":  # a process that rank 0 started, under rank 0's lock
        return _execute(run, Progress(run), {})
    with run.lock():
        if run.status == "finished":
            return run.summary() or {}
        stage = {"now": "build"}
        try:
            return _execute(run, Progress(run), stage)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _record_failure(run, stage["now"], error)
            raise


def _execute(run: RunDirectory, progress: Progress, stage: dict) -> dict:
    config, provenance = run.config(), run.provenance()
    quiet()
    progress.write("build", 0, config["trainer"]["max_steps"])
    if config["threads"] < 1:
        raise UserError(f"threads={config['threads']}: a whole number from 1 is accepted")
    torch.set_num_threads(config["threads"])
    check_targets(config)
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    data = build_data(config)
    model = build_model(config, data)
    sampler = build(config["sampler"], "sampler")
    loggers = build_loggers(config, provenance, run)
    samples = config["samples"]
    callbacks = [
        *(build(node, f"callbacks.{name}") for name, node in config["callbacks"].items() if node),
        *checkpointing(run, model, config["trainer"]["val_check_interval"], bool(len(data.splits["val"]))),
        SampleGrid(sampler, data, run / "samples", n=min(16, samples["n"]), pictures=samples["pictures"]),
        progress,
    ]
    trainer = build_trainer(config, run, callbacks, loggers)
    model.config = config
    start = newest_readable(run.checkpoints())
    if start is not None:
        step = read_checkpoint(start)["global_step"]
        for logger in loggers:
            if isinstance(logger, MetricsCsv):
                logger.keep_until(step)
    ok = False
    try:
        stage["now"] = "fit"
        began = time.perf_counter()
        trainer.fit(model, data, ckpt_path=start)
        fit_seconds = time.perf_counter() - began
        stage["now"] = "test"
        progress.write("test", trainer.global_step, trainer.max_steps)
        chosen = choose(run, config["checkpoint"])
        load_weights(model, read_checkpoint(chosen), config["weights"])
        began = time.perf_counter()
        figures = account(trainer, model, data)
        summary = finished(
            provenance,
            config,
            parameters=sum(p.numel() for p in model.parameters()),
            steps=trainer.global_step,
            seconds={"fit": round(fit_seconds, 2), "test": round(time.perf_counter() - began, 2)},
            device=_device(trainer),
            world_size=trainer.world_size,
            weights=config["weights"],
            checkpoint=str(chosen.relative_to(run.path)),
            **figures,
            weighting=effective_weight(model),
            samples=_final_samples(run, model, sampler, data, samples["n"], loggers, trainer),
        )
        if trainer.is_global_zero:
            run.write("summary.json", summary)
        ok = True
    finally:
        close_loggers(loggers, ok)
    return summary


def build_trainer(
    config: dict, run: RunDirectory | None, callbacks: list, loggers: list | bool
) -> pl.Trainer:
    """Lightning's Trainer with what never varies; UserError for what the machine does not have."""
    node = dict(config["trainer"])
    devices, accelerator = node["devices"], node["accelerator"]
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    if isinstance(devices, int) and on_cpu and not 1 <= devices <= cores():
        raise UserError(
            f"trainer.devices={devices}: 1 to {cores()} is accepted on this machine's {cores()} CPU cores"
        )
    if config["trainer"]["max_steps"] < 1:
        raise UserError(
            f"trainer.max_steps={config['trainer']['max_steps']}: a whole number from 1 is accepted"
        )
    return build(
        node,
        "trainer",
        max_epochs=-1,  # one endless epoch: steps decide
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # our loaders know the processes, and pad nothing
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(run.path) if run else None,
    )


def checkpointing(run: RunDirectory, model: Diffusion, every: int, validated: bool) -> list[ModelCheckpoint]:
    """Keep the last state, to go on from, and the best by the validation bound, where there is one."""
    common: dict[str, Any] = {"dirpath": run / "checkpoints", "enable_version_counter": False}
    kept = [
        ModelCheckpoint(filename="last", every_n_train_steps=every, save_on_train_epoch_end=True, **common)
    ]
    if validated:
        kept.append(ModelCheckpoint(filename="best", monitor=f"val/{model.accounting.unit}", **common))
    return kept


def choose(run: RunDirectory, which: str) -> Path:
    """The checkpoint whose weights are reported: "last", or "best" by the validation bound."""
    folder = run / "checkpoints"
    if which == "last":
        return folder / "last.ckpt"
    if which == "best":
        best = folder / "best.ckpt"
        return best if best.exists() else folder / "last.ckpt"
    raise UserError(f"checkpoint={which}: one of last, best is accepted")


def account(trainer: pl.Trainer, model: Diffusion, data: DataModule) -> dict[str, Any]:
    """The bound over the whole validation and test sets, and as many training items as test items."""
    figures: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        limit = len(data.splits["test"]) if split == "train" else None
        if len(data.splits[split]):
            figures[split] = account_split(trainer, model, data, split, limit)
    figures["noise_levels"] = model.accounting.noise_levels  # of the test set, accounted last
    return figures


def account_split(
    trainer: pl.Trainer, model: Diffusion, data: DataModule, split: str, limit: int | None = None
) -> dict:
    """{"bpd": {"mean", "stderr", "n"}, ...} of one split under the model's present weights."""
    model.split = split
    trainer.test(model, dataloaders=data.eval_dataloader(split, limit), verbose=False)
    found = model.accounting.compute()
    if data.mixture is not None and "gap" in found:
        entropy = data.mixture.entropy()
        dims = model.dims
        found["entropy"] = {"mean": entropy.mean / dims, "stderr": entropy.stderr / dims, "n": 0}
    return found


def effective_weight(model: Diffusion) -> dict[str, list[float]]:
    """The objective's weight on the epsilon error per unit of gamma (ELBO = 1), for a plot."""
    t = torch.linspace(0.005, 0.995, WEIGHT_POINTS, device=model.device)
    with torch.no_grad():
        low, high = model.schedule.gamma(torch.tensor([0.0, 1.0], device=model.device))
        gamma = low + (high - low) * t
        weight = model.objective.effective_weight(model.denoiser.process, model.schedule, gamma)
    return {"gamma": gamma.tolist(), "effective": weight.tolist()}


def _final_samples(run, model, sampler, data, n, loggers, trainer) -> str | None:
    if n < 1 or not trainer.is_global_zero:
        return None
    picture = run / "samples" / "final.png"
    x = draw(model, sampler, data, n, seed=0)
    save(x, data, picture)
    torch.save({"x": x}, run / "samples" / "final.pt")
    log_picture(loggers, "samples/final", picture, trainer.global_step)
    return str(picture.relative_to(run.path))


def _device(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _record_failure(run: RunDirectory, stage: str, error: BaseException) -> None:
    line = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    run.write("summary.json", failed(run.provenance(), stage, " ".join(line.split())[:1000]))
    if not isinstance(error, UserError):
        with open(run / "train.log", "a") as log:
            log.write(traceback.format_exc())
