"""Answer names that do not exist: a habit's with the equivalent here or a reason, others with the nearest."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from triptych.config.schema import Trainer

NEAR = 0.5  # difflib's ratio from which names are alike
# a key, or choices and a key, to type, and what stands for it elsewhere; with = in it, a choice
_NAMES = {
    "optimizer.lr": "lr learning_rate model.lr model.learning_rate trainer.lr optimizer.learning_rate "
    "lr_schedule.lr",
    "optimizer.weight_decay": "wd weight_decay model.weight_decay",
    "trainer.max_epochs": "epochs n_epochs num_epochs trainer.epochs training.num_epochs training.epochs",
    "trainer.max_steps": "n_steps num_steps train_steps iterations",
    "trainer.accelerator=gpu trainer.devices": "gpus n_gpus num_gpus trainer.gpus",
    "trainer.accelerator=gpu": "trainer=gpu",
    "trainer.precision": "amp fp16",
    "trainer.gradient_clip_val": "grad_clip clip_grad max_grad_norm",
    "data.batch_size": "batch_size bs train_batch_size trainer.batch_size",
    "data.num_workers": "num_workers workers",
    "data.pin_memory": "pin_memory",
    "data.root": "root data_root dataset_path data.path data.data_dir",
    "paths.data_dir": "data_dir",
    "data": "dataset",
    "data.size": "image_size resolution data.image_size",
    "denoiser": "net network arch",
    "lr_schedule": "scheduler lr_scheduler",
    "lr_schedule=constant": "lr_schedule=none",
    "schedule": "noise_schedule",
    "objective": "prediction_type parameterization target",
    "objective=epsilon": "objective=eps objective=noise",
    "objective=x0": "objective=x_start objective=sample",
    "objective=v": "objective=v_prediction",
    "objective/loss": "loss",
    "objective/loss=simple": "objective/loss=mse objective/loss=l2",
    "bound.steps": "timesteps num_timesteps num_train_timesteps diffusion_steps",
    "sampler.steps": "num_inference_steps sampler.num_inference_steps sampling_steps sampling_timesteps",
    "denoiser.network.blocks": "denoiser.network.num_blocks denoiser.network.n_blocks num_blocks n_blocks",
    "guidance=classifier_free guidance.scale": "cfg_scale guidance_scale",
    "samples.n": "n_samples num_samples",
    "name": "exp_name experiment_name run_name",
    "seed": "random_seed",
    "sampler=ancestral": "sampler=ddpm",
    "sampler=dpm_solver": "sampler=dpm sampler=dpmpp sampler=dpm_solver++",
    "logger=csv": "logger=none logger=false logger=null",
    "measures.n=1000 measures.inception=FILE": "metrics=fid metrics=FID",
}
MEANT = {key: f"trainer.{key}" for key in (*Trainer.__annotations__, "fast_dev_run")}
MEANT |= {typed: fix for fix, names in _NAMES.items() for typed in names.split()}
_BATCHES = "batches follow from (seed, step), so that a run goes on where it was"
_BAR = "a run has its own; trainer.enable_progress_bar=false turns it off"
_AVERAGE = "averages are callbacks.ema's, so that all runs report the same one"
INSTEAD = {
    "trainer.limit_test_batches": "a run is measured on exactly the whole test set; bound.repeats=1 is "
    "quick, test=false leaves it out",
    "trainer.fast_dev_run": "must be true, false or a number of steps",
    "trainer.enable_checkpointing": "a run keeps its checkpoints, so that it goes on where it was; "
    "leave it out",
    "trainer.max_time": "must be null or DD:HH:MM:SS; ten minutes are 00:00:10:00",
    "trainer.callbacks": "these are in callbacks; add one with +callbacks.NAME._target_=CLASS, take one out "
    "with callbacks.NAME=null",
    "trainer.logger": "use logger=wandb, logger=tensorboard, logger=mlflow or logger=csv",
    "trainer.default_root_dir": "a run writes into its own directory; paths.log_dir=DIR moves all of them",
    "trainer.plugins": "a run writes its checkpoints whole or not at all, by a plugin of its own",
    "trainer.use_distributed_sampler": f"{_BATCHES}, on any number of processes",
    "trainer.reload_dataloaders_every_n_epochs": _BATCHES,
    "trainer.check_val_every_n_epoch": "use trainer.val_check_interval, in steps",
    "trainer.min_epochs": "use trainer.min_steps",
    "trainer.barebones": "every run reports its bound and keeps its checkpoints; use trainer.profiler",
    "trainer.limit_predict_batches": "use triptych-sample ckpt=RUN n=N",
    "trainer.enable_autolog_hparams": "the whole configuration is recorded, in config.yaml",
    "trainer.model_registry": "use logger=wandb logger.wandb.artifacts=true",
}
CALLBACKS = {  # of Lightning's, those that a run has of its own
    "ModelCheckpoint": "a run keeps its own checkpoints; checkpoint=best reports the best",
    "OnExceptionCheckpoint": "a run saves the step it is in, whatever ends it",
    **dict.fromkeys(("RichProgressBar", "TQDMProgressBar"), _BAR),
    **dict.fromkeys(("StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging"), _AVERAGE),
    "GradientAccumulationScheduler": "use trainer.accumulate_grad_batches",
    "LearningRateFinder": "the recorded learning rate is that of the whole run; use hparams_search=optuna",
    "BatchSizeFinder": "the recorded batch size is that of the whole run; use data.batch_size",
}


def answer(key: str, value: str, problem: str = "no such key") -> str:
    """Return a one-line answer, as ``lr=0.1: no such key; use optimizer.lr=0.1``; "" if there is none."""
    typed = f"{key}={value}"
    if line := MEANT.get(typed):
        return f"{typed}: {problem}; use {line}"
    if line := MEANT.get(key):
        line = f"{line}={value}"
        return f"{typed}: {problem}; use {MEANT.get(line, line)}"
    return f"{typed}: {INSTEAD[key]}" if key in INSTEAD else ""


def translated(argument: str) -> list[str]:
    """Translate ``trainer.fast_dev_run=true`` to equivalent overrides; others are unchanged."""
    key, _, value = argument.lstrip("+").partition("=")
    if key != "trainer.fast_dev_run":
        return [argument]
    named = {"false": [], "0": [], "true": ["debug=fdr"]}
    steps = ["debug=fdr", f"trainer.max_steps={value}"] if value.isdecimal() else [argument]
    return named.get(value.lower(), steps)


def nearest(name: str, names: Sequence[str]) -> str:
    """Return "did you mean ...?" for the same name in a group, or the ``closest``; else the list of names."""
    names = sorted(one for one in set(names) if not name.startswith(f"{one}."))  # its group is no key
    group = name.rpartition(".")[0]
    if inside := [one for one in names if one.rpartition(".")[2] == name]:  # typed without its group
        return f"did you mean {' or '.join(inside[:3])}?"
    if close := closest(name, names):
        return f"did you mean {close}?"
    names = [one for one in names if one.rpartition(".")[0] == group] or names
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"choose from {shown}" if shown else "there are none"


def closest(name: str, names: Sequence[str]) -> str:
    """Return the name most alike as a whole and in its last part (groups make any two alike); "" if none."""

    def likeness(one: str) -> float:
        pairs = (one, name), (one.rpartition(".")[2], name.rpartition(".")[2])
        ratios = [SequenceMatcher(None, *pair).ratio() for pair in pairs]
        return sum(ratios) if min(ratios) >= NEAR and "._" not in one else 0.0

    return max(filter(likeness, names), key=likeness, default="")
