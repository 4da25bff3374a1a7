"""Suggest a key or choice for one that does not exist: a name of another tool, or misspelt.

``HABITS`` is the table of other tools' names. ``docs/habits.md`` lists it, and the tests type each
example and then the suggestion.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

NEAR = 0.5  # minimum similarity (difflib's ratio) of a suggested name
VALUE = "VALUE"  # placeholder in an answer for the value that the user typed
SHOWN = 12  # maximum number of names in a message if no name is similar
_BAR = "every run has a progress bar; trainer.enable_progress_bar=false turns it off"
_AVERAGE = "use callbacks.ema, so that all runs report the same average"
CALLBACKS = {  # Lightning's callbacks that a run replaces by its own, with the reason
    "ModelCheckpoint": "every run saves checkpoints; checkpoint=best reports the best one",
    "OnExceptionCheckpoint": "every run saves a checkpoint when it is interrupted",
    "RichProgressBar": _BAR,
    "TQDMProgressBar": _BAR,
    "StochasticWeightAveraging": _AVERAGE,
    "WeightAveraging": _AVERAGE,
    "EMAWeightAveraging": _AVERAGE,
    "GradientAccumulationScheduler": "use trainer.accumulate_grad_batches",
    "LearningRateFinder": (
        "it would change the learning rate after it was recorded; use hparams_search=optuna"
    ),
    "BatchSizeFinder": "it would change the batch size after it was recorded; use data.batch_size",
}


class Habit(NamedTuple):
    """Names that users of other tools type, with an example, and the overrides to ``use`` here.

    ``names`` are keys or choices KEY=VALUE, separated by spaces; choices are looked up first. If
    there are no overrides to use, ``why`` is the reason.
    """

    names: str
    example: str
    use: str = ""
    why: str = ""
    commands: tuple[str, ...] = ("train",)


BOTH, OPENING = ("train", "sample"), ("evaluate", "sample")
# fmt: off
HABITS = (
    Habit("lr learning_rate model.lr model.learning_rate trainer.lr optimizer.learning_rate lr_schedule.lr",
          "lr=0.1", "optimizer.lr=VALUE"),
    Habit("wd weight_decay model.weight_decay", "wd=0.1", "optimizer.weight_decay=VALUE"),
    Habit("scheduler scheduler.name scheduler._target_ noise_scheduler", "scheduler.name=cosine",
          why="use lr_schedule=NAME for the learning rate, schedule=NAME for noise, sampler=NAME for sampling"),
    Habit("lr_scheduler", "lr_scheduler=constant", "lr_schedule=VALUE"),
    Habit("grad_clip clip_grad max_grad_norm", "grad_clip=1.0", "trainer.gradient_clip_val=VALUE"),
    Habit("epochs n_epochs num_epochs trainer.epochs training.num_epochs training.epochs",
          "num_epochs=3", "trainer.max_epochs=VALUE"),
    Habit("n_steps num_steps train_steps iterations", "num_steps=300", "trainer.max_steps=VALUE"),
    Habit("fast_dev_run trainer.fast_dev_run", "trainer.fast_dev_run=true", "debug=fdr"),
    Habit("gpus n_gpus num_gpus trainer.gpus", "gpus=2", "trainer.accelerator=gpu trainer.devices=VALUE"),
    Habit("trainer=gpu device=cuda device=gpu", "device=cuda", "trainer.accelerator=gpu"),
    Habit("device", "device=cpu", "trainer.accelerator=VALUE"),
    Habit("device accelerator trainer.accelerator", "device=cuda",
          why="a GPU is used if there is one; CUDA_VISIBLE_DEVICES='' before the command hides it",
          commands=OPENING),
    Habit("amp fp16 mixed_precision mixed_precision=fp16", "fp16=true", "trainer.precision=16-mixed"),
    Habit("bf16 mixed_precision=bf16", "bf16=true", "trainer.precision=bf16-mixed"),
    Habit("tf32 allow_tf32", "tf32=true", "trainer.tf32=VALUE"),
    Habit("dataset datamodule", "datamodule=shapes", "data=VALUE"),
    Habit("batch_size bs train_batch_size trainer.batch_size datamodule.batch_size", "batch_size=50",
          "data.batch_size=VALUE"),
    Habit("bs data.batch_size eval_batch_size test_batch_size", "bs=50", "batch_size=VALUE",
          commands=OPENING),
    Habit("num_workers workers datamodule.num_workers", "num_workers=2", "data.num_workers=VALUE"),
    Habit("root data_root dataset_path data.path data.data_dir datamodule.data_dir", "root=.",
          "data=folder data.root=VALUE"),
    Habit("root data.root data_dir dataset_path", "root=.", "data_root=VALUE", commands=OPENING),
    Habit("image_size resolution data.image_size", "image_size=8",
          "data=folder data.root=FOLDER data.size=VALUE"),
    Habit("data_dir", "data_dir=/x", "paths.data_dir=VALUE"),
    Habit("net network arch", "net=dit", "denoiser=VALUE"),
    Habit("noise_schedule", "noise_schedule=cosine", "schedule=VALUE"),
    Habit("prediction_type parameterization target objective=eps objective=noise objective=x_start "
          "objective=sample objective=v_prediction", "prediction_type=v_prediction",
          why="use objective=epsilon, objective=x0, objective=v or objective=score"),
    Habit("loss=mse loss=l2 objective/loss=mse objective/loss=l2", "loss=mse", "objective/loss=simple"),
    Habit("loss", "loss=min_snr", "objective/loss=VALUE"),
    Habit("snr_gamma min_snr_gamma objective.loss.gamma objective.loss.snr_gamma",
          "snr_gamma=5.0", "objective/loss=min_snr objective.loss.cap=VALUE"),
    Habit("timesteps num_timesteps num_train_timesteps diffusion_steps", "timesteps=1000",
          "bound.steps=VALUE"),
    Habit("timesteps num_timesteps num_train_timesteps diffusion_steps", "timesteps=1000", "steps=VALUE",
          commands=("evaluate",)),
    Habit("ema_decay ema_rate ema.decay callbacks.ema.decay callbacks.ema.beta", "ema_decay=0.999",
          why="use callbacks.ema.sigma_rel=null callbacks.ema.half_life=STEPS, where STEPS is "
          "ln 2 / -ln(decay): 693 for a decay of 0.999"),
    Habit("num_inference_steps sampler.num_inference_steps sampling_steps sampling_timesteps",
          "num_inference_steps=50", "sampler.steps=VALUE", commands=BOTH),
    Habit("cfg_scale guidance_scale", "guidance_scale=3", "guidance=classifier_free guidance.scale=VALUE",
          commands=BOTH),
    Habit("eta", "eta=0.5", "sampler=ddim sampler.eta=VALUE", commands=BOTH),
    Habit("sampler=ddpm", "sampler=ddpm", "sampler=ancestral", commands=BOTH),
    Habit("n_samples num_samples", "num_samples=8", "samples.n=VALUE"),
    Habit("n_samples num_samples n_images num_images samples.n", "num_samples=8", "n=VALUE",
          commands=("sample",)),
    Habit("class class_label class_labels", "class=3", "label=VALUE", commands=("sample",)),
    Habit("metrics=fid metrics=FID", "metrics=fid", "measures.inception=FILE measures.n=1000"),
    Habit("train", "train=false",
          why="to evaluate a trained model, type triptych-evaluate ckpt=RUN; as a new run, trained=RUN"),
    Habit("exp_name experiment_name run_name", "run_name=first", "name=VALUE"),
    Habit("random_seed seed_everything", "seed_everything=2", "seed=VALUE", commands=BOTH),
    Habit("output_dir outdir out_dir log_dir logdir save_dir paths.output_dir", "output_dir=/x",
          "paths.log_dir=VALUE"),
    Habit("output_dir outdir out_dir save_dir", "output_dir=pictures", "out=VALUE", commands=("sample",)),
    Habit("load_from_checkpoint pretrained", "load_from_checkpoint=last.ckpt", "init_from=VALUE"),
    Habit("ckpt ckpt_path checkpoint_path resume_from_checkpoint resume_from trainer.ckpt_path "
          "trainer.resume_from_checkpoint", "ckpt_path=last.ckpt",
          why="resume a run by repeating its command, or with triptych-train resume=RUN; "
          "start from its weights with init_from=RUN"),
    Habit("ckpt_path checkpoint checkpoint_path load_from_checkpoint run trained", "ckpt_path=x",
          "ckpt=VALUE", commands=OPENING),
    Habit("callbacks.model_checkpoint.monitor callbacks.model_checkpoint.save_top_k "
          "callbacks.model_checkpoint.dirpath callbacks=model_checkpoint",
          "callbacks.model_checkpoint.monitor=val/loss", why=CALLBACKS["ModelCheckpoint"]),
    Habit("trainer.limit_test_batches", "trainer.limit_test_batches=0.1",
          why="the test uses the whole test set; bound.repeats=1 makes it faster, test=false skips it"),
    Habit("trainer.enable_checkpointing", "trainer.enable_checkpointing=false",
          why="a run needs its checkpoints to resume; leave this key out"),
    Habit("trainer.max_time", "trainer.max_time=5",
          why="must be null or DD:HH:MM:SS, as 00:00:10:00 for ten minutes"),
    Habit("trainer.callbacks", "trainer.callbacks=null",
          why="use the group callbacks: add one with +callbacks.NAME._target_=CLASS, remove one with "
          "callbacks.NAME=null"),
    Habit("trainer.logger", "trainer.logger=false",
          why="use logger=wandb, logger=tensorboard, logger=mlflow or logger=csv"),
    Habit("trainer.default_root_dir", "trainer.default_root_dir=/x",
          why="each run has its own directory; paths.log_dir=DIR sets where these are created"),
    Habit("trainer.check_val_every_n_epoch", "trainer.check_val_every_n_epoch=1",
          why="use trainer.val_check_interval, in steps"),
)
# fmt: on


def advice(key: str, value: str, command: str = "train") -> str:
    """Return advice on a key or choice of another tool; "" if it is not in ``HABITS``.

    The advice is what to type instead, or why there is no equivalent.
    """
    for typed in (f"{key}={value}", key):
        for habit in HABITS:
            if command in habit.commands and typed in habit.names.split():
                return habit.why or f"use {habit.use.replace(VALUE, value)}"
    return ""


def advice_line(key: str, value: str, command: str = "train") -> str:
    """Return the error line for a key of another tool, "lr=0.1: use optimizer.lr=0.1"; or ""."""
    text = advice(key, value, command)
    return f"{key}={value}: {text}" if text else ""


def suggest_name(name: str, names: Sequence[str]) -> str:
    """Suggest names out of ``names`` in place of ``name``, which does not exist.

    The suggestion is a key that ends in ``name``, such as optimizer.lr for lr; or else a similar
    name; or else a list of the names in the same group.
    """
    # Skip names that are groups of further keys.
    keys = sorted(known for known in set(names) if not known.startswith(f"{name}."))
    inside = [known for known in keys if known.rpartition(".")[2] == name]
    if inside:  # the user left out the group of the key
        return f"did you mean {' or '.join(inside[:3])}?"
    match = closest_name(name, keys)
    if match:
        return f"did you mean {match}?"
    group = name.rpartition(".")[0]
    siblings = [known for known in keys if known.rpartition(".")[0] == group]
    return f"choose from {', '.join((siblings or keys)[:SHOWN])}"


def closest_name(name: str, names: Sequence[str]) -> str:
    """Return the name in ``names`` that is most similar to ``name``; "" if none is similar.

    Both the whole name and its last part must be similar, as all keys of a group begin alike.
    """

    def similarity(known: str) -> float:
        whole = SequenceMatcher(None, known, name).ratio()
        last = SequenceMatcher(None, known.rpartition(".")[2], name.rpartition(".")[2]).ratio()
        if min(whole, last) < NEAR or "._" in known:
            return 0.0
        return whole + last

    return max(filter(similarity, names), key=similarity, default="")
