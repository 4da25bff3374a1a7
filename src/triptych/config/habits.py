"""Answer keys that users of Lightning and Hydra type out of habit with the equivalent here.

``MEANT``: another key or choice does the same; ``INSTEAD``: why a key of Lightning's is not to be set.
"""

from triptych.config.libraries import Trainer

MEANT = {  # typed: the key, or the choices and a key, to type instead; with = in it, a choice
    **{key: f"trainer.{key}" for key in (*Trainer.__annotations__, "fast_dev_run")},
    **dict.fromkeys(("lr", "learning_rate", "model.lr", "model.learning_rate", "trainer.lr"), "optimizer.lr"),
    **dict.fromkeys(("optimizer.learning_rate", "lr_schedule.lr"), "optimizer.lr"),
    **dict.fromkeys(("wd", "weight_decay", "model.weight_decay"), "optimizer.weight_decay"),
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs", "trainer.epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("n_steps", "num_steps", "train_steps", "iterations"), "trainer.max_steps"),
    **dict.fromkeys(("batch_size", "bs", "train_batch_size", "trainer.batch_size"), "data.batch_size"),
    **dict.fromkeys(("num_workers", "workers"), "data.num_workers"),
    "pin_memory": "data.pin_memory",
    **dict.fromkeys(
        ("gpus", "n_gpus", "num_gpus", "trainer.gpus"), "trainer.accelerator=gpu trainer.devices"
    ),
    **dict.fromkeys(("amp", "fp16"), "trainer.precision"),
    **dict.fromkeys(("grad_clip", "clip_grad", "max_grad_norm"), "trainer.gradient_clip_val"),
    **dict.fromkeys(("root", "data_root", "dataset_path", "data.path", "data.data_dir"), "data.root"),
    "data_dir": "paths.data_dir",
    "dataset": "data",
    **dict.fromkeys(("image_size", "resolution", "data.image_size"), "data.size"),
    **dict.fromkeys(("net", "network", "arch"), "denoiser"),
    **dict.fromkeys(("scheduler", "lr_scheduler"), "lr_schedule"),
    "noise_schedule": "schedule",
    **dict.fromkeys(("prediction_type", "parameterization", "target"), "objective"),
    "loss": "objective/loss",
    **dict.fromkeys(("timesteps", "num_timesteps", "diffusion_steps"), "bound.steps"),
    **dict.fromkeys(("cfg_scale", "guidance_scale"), "guidance=classifier_free guidance.scale"),
    **dict.fromkeys(("n_samples", "num_samples"), "samples.n"),
    **dict.fromkeys(("exp_name", "experiment_name", "run_name"), "name"),
    "random_seed": "seed",
    "sampler=ddpm": "sampler=ancestral",
    **dict.fromkeys(("sampler=dpm", "sampler=dpmpp", "sampler=dpm_solver++"), "sampler=dpm_solver"),
    **dict.fromkeys(("objective=eps", "objective=noise"), "objective=epsilon"),
    **dict.fromkeys(("objective=x_start", "objective=sample"), "objective=x0"),
    "objective=v_prediction": "objective=v",
    **dict.fromkeys(("objective/loss=mse", "objective/loss=l2"), "objective/loss=simple"),
    **dict.fromkeys(("logger=none", "logger=false", "logger=null"), "logger=csv"),
    "trainer=gpu": "trainer.accelerator=gpu",
    "lr_schedule=none": "lr_schedule=constant",
    **dict.fromkeys(("metrics=fid", "metrics=FID"), "measures.n=1000 measures.inception=FILE"),
}

SEED_AND_STEP = "batches follow from (seed, step), so that a run goes on where it was"
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
    "trainer.use_distributed_sampler": SEED_AND_STEP + ", on any number of processes",
    "trainer.reload_dataloaders_every_n_epochs": SEED_AND_STEP,
    "trainer.check_val_every_n_epoch": "use trainer.val_check_interval, in steps",
    "trainer.min_epochs": "use trainer.min_steps",
    "trainer.barebones": "every run reports its bound and keeps its checkpoints; use trainer.profiler",
    "trainer.limit_predict_batches": "use triptych-sample ckpt=RUN n=N",
    "trainer.enable_autolog_hparams": "the whole configuration is recorded, in config.yaml",
    "trainer.model_registry": "use logger=wandb logger.wandb.artifacts=true",
}  # fmt: skip
CALLBACKS = {  # of Lightning's, those that a run has of its own
    "ModelCheckpoint": "a run keeps its own checkpoints; checkpoint=best reports the best",
    "OnExceptionCheckpoint": "a run saves the step it is in, whatever ends it",
    "RichProgressBar": "a run has its own; trainer.enable_progress_bar=false turns it off",
    "TQDMProgressBar": "a run has its own; trainer.enable_progress_bar=false turns it off",
    "StochasticWeightAveraging": "averages are callbacks.ema's, so that all runs report the same one",
    "WeightAveraging": "averages are callbacks.ema's, so that all runs report the same one",
    "EMAWeightAveraging": "averages are callbacks.ema's, so that all runs report the same one",
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
        return f"{typed}: {problem}; use {line}={value}"
    return f"{typed}: {INSTEAD[key]}" if key in INSTEAD else ""


def translated(argument: str) -> list[str]:
    """Translate ``trainer.fast_dev_run=true`` to equivalent overrides; others are unchanged."""
    key, _, value = argument.lstrip("+").partition("=")
    if key != "trainer.fast_dev_run":
        return [argument]
    if value.lower() in ("false", "0"):
        return []
    if value.lower() == "true":
        return ["debug=fdr"]
    return ["debug=fdr", f"trainer.max_steps={value}"] if value.isdecimal() else [argument]
