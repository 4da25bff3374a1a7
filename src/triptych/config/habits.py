"""Answer names that do not exist: a habit's with the equivalent here or a reason, others with the nearest.

``HABITS`` is the one table of what is typed elsewhere: answers are read from it, ``docs/habits.md`` lists it,
and its tests type each example, and then what the answer says.
"""

import math
from collections.abc import Callable, Collection, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import NamedTuple

from triptych.config.schema import Trainer

NEAR = 0.5  # difflib's ratio from which names are alike
VALUE = "VALUE"  # in the words to type: the value that was typed
_BATCHES = "batches follow from (seed, step), so that a run goes on where it was"
_BAR = "a run has its own; trainer.enable_progress_bar=false turns it off"
_AVERAGE = "averages are callbacks.ema's, so that all runs report the same one"
CALLBACKS = {  # of Lightning's, those that a run has of its own
    "ModelCheckpoint": "a run keeps its own checkpoints; checkpoint=best reports the best",
    "OnExceptionCheckpoint": "a run saves the step it is in, whatever ends it",
    **dict.fromkeys(("RichProgressBar", "TQDMProgressBar"), _BAR),
    **dict.fromkeys(("StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging"), _AVERAGE),
    "GradientAccumulationScheduler": "use trainer.accumulate_grad_batches",
    "LearningRateFinder": "the recorded learning rate is that of the whole run; use hparams_search=optuna",
    "BatchSizeFinder": "the recorded batch size is that of the whole run; use data.batch_size",
}


def half_life(decay: str) -> str:
    """Return the steps in which an average with this decay, as 0.999, halves a weight; or "STEPS"."""
    try:
        return f"{math.log(2) / -math.log(float(decay)):.0f}"
    except (ValueError, ZeroDivisionError):
        return "STEPS"


class Habit(NamedTuple):
    """Names typed elsewhere with an example, and the override to type here or why there is none.

    A name is a key, or a choice as KEY=VALUE; its ``*`` is any text.
    """

    names: str
    example: str
    use: str = ""
    beside: str = ""  # overrides that it needs, unless their keys are typed already
    why: str = ""
    commands: tuple[str, ...] = ("train",)
    convert: Callable[[str], str] = str  # of the value

    def has(self, typed: str) -> bool:
        """Return whether this text is one of the names."""
        return any(fnmatchcase(typed, name) for name in self.names.split())


BOTH, OPENING = ("train", "sample"), ("evaluate", "sample")
# fmt: off
HABITS = (
    Habit("lr learning_rate model.lr model.learning_rate trainer.lr optimizer.learning_rate lr_schedule.lr",
          "lr=0.1", "optimizer.lr=VALUE"),
    Habit("wd weight_decay model.weight_decay", "wd=0.1", "optimizer.weight_decay=VALUE"),
    Habit("noise_scheduler scheduler=dd* scheduler.name=dd*", "scheduler.name=ddim", "sampler=VALUE",
          commands=BOTH),
    Habit("scheduler scheduler.*", "scheduler.name=cosine",
          why="lr_schedule=NAME is of the learning rate, schedule=NAME of noise, sampler=NAME of samples"),
    Habit("lr_scheduler", "lr_scheduler=constant", "lr_schedule=VALUE"),
    Habit("lr_schedule=none", "lr_schedule=none", "lr_schedule=constant"),
    Habit("grad_clip clip_grad max_grad_norm", "grad_clip=1.0", "trainer.gradient_clip_val=VALUE"),
    Habit("epochs n_epochs num_epochs trainer.epochs training.num_epochs training.epochs",
          "num_epochs=3", "trainer.max_epochs=VALUE"),
    Habit("n_steps num_steps train_steps iterations", "num_steps=300", "trainer.max_steps=VALUE"),
    Habit("gpus n_gpus num_gpus trainer.gpus", "gpus=2", "trainer.devices=VALUE", "trainer.accelerator=gpu"),
    Habit("trainer=gpu device=cuda* device=gpu", "device=cuda", "trainer.accelerator=gpu"),
    Habit("device", "device=cpu", "trainer.accelerator=VALUE"),
    Habit("device accelerator trainer.accelerator", "device=cuda",
          why="a GPU is used where there is one; CUDA_VISIBLE_DEVICES='' before the command hides it",
          commands=OPENING),
    Habit("amp=true fp16=true mixed_precision=fp16", "fp16=true", "trainer.precision=16-mixed"),
    Habit("bf16=true mixed_precision=bf16", "bf16=true", "trainer.precision=bf16-mixed"),
    Habit("precision=16 trainer.precision=16", "precision=16", "trainer.precision=16-mixed"),
    Habit("precision=bf16 trainer.precision=bf16", "precision=bf16", "trainer.precision=bf16-mixed"),
    Habit("amp fp16 mixed_precision", "amp=16-mixed", "trainer.precision=VALUE"),
    Habit("dataset datamodule", "datamodule=shapes", "data=VALUE"),
    Habit("batch_size bs train_batch_size trainer.batch_size datamodule.batch_size", "batch_size=50",
          "data.batch_size=VALUE"),
    Habit("bs data.batch_size eval_batch_size test_batch_size", "bs=50", "batch_size=VALUE",
          commands=OPENING),
    Habit("num_workers workers datamodule.num_workers", "num_workers=2", "data.num_workers=VALUE"),
    Habit("pin_memory datamodule.pin_memory", "pin_memory=true", "data.pin_memory=VALUE"),
    Habit("root data_root dataset_path data.path data.data_dir datamodule.data_dir", "root=.",
          "data.root=VALUE", "data=folder"),
    Habit("root data.root data_dir dataset_path", "root=.", "data_root=VALUE", commands=OPENING),
    Habit("image_size resolution data.image_size", "image_size=8",
          "data.size=VALUE", "data=folder data.root=FOLDER"),
    Habit("data_dir", "data_dir=/x", "paths.data_dir=VALUE"),
    Habit("net network arch", "net=dit", "denoiser=VALUE"),
    Habit("denoiser.network.num_blocks denoiser.network.n_blocks num_blocks n_blocks",
          "num_blocks=2", "denoiser.network.blocks=VALUE"),
    Habit("noise_schedule", "noise_schedule=cosine", "schedule=VALUE"),
    Habit("prediction_type parameterization target", "prediction_type=v_prediction", "objective=VALUE"),
    Habit("objective=eps objective=noise", "objective=eps", "objective=epsilon"),
    Habit("objective=x_start objective=sample", "objective=sample", "objective=x0"),
    Habit("objective=v_prediction", "objective=v_prediction", "objective=v"),
    Habit("loss", "loss=mse", "objective/loss=VALUE"),
    Habit("objective/loss=mse objective/loss=l2", "objective/loss=mse", "objective/loss=simple"),
    Habit("snr_gamma min_snr_gamma objective.loss.gamma objective.loss.snr_gamma",
          "snr_gamma=5.0", "objective.loss.cap=VALUE", "objective/loss=min_snr"),
    Habit("timesteps num_timesteps num_train_timesteps diffusion_steps", "timesteps=1000",
          "bound.steps=VALUE"),
    Habit("timesteps num_timesteps num_train_timesteps diffusion_steps bound.steps", "timesteps=1000",
          "steps=VALUE", commands=("evaluate",)),
    Habit("bound.repeats", "bound.repeats=2", "repeats=VALUE", commands=("evaluate",)),
    Habit("bound.variance", "bound.variance=beta", "variance=VALUE", commands=("evaluate",)),
    Habit("ema_decay ema_rate ema.decay callbacks.ema.decay callbacks.ema.beta", "ema_decay=0.999",
          "callbacks.ema.half_life=VALUE", "callbacks.ema.sigma_rel=null", convert=half_life),
    Habit("num_inference_steps sampler.num_inference_steps sampling_steps sampling_timesteps",
          "num_inference_steps=50", "sampler.steps=VALUE", commands=BOTH),
    Habit("cfg_scale guidance_scale", "guidance_scale=3", "guidance.scale=VALUE", "guidance=classifier_free",
          commands=BOTH),
    Habit("eta", "eta=0.5", "sampler.eta=VALUE", "sampler=ddim", commands=BOTH),
    Habit("sampler=ddpm", "sampler=ddpm", "sampler=ancestral", commands=BOTH),
    Habit("sampler=dpm sampler=dpmpp sampler=dpm_solver++", "sampler=dpmpp", "sampler=dpm_solver",
          commands=BOTH),
    Habit("n_samples num_samples", "num_samples=8", "samples.n=VALUE"),
    Habit("n_samples num_samples n_images num_images samples.n", "num_samples=8", "n=VALUE",
          commands=("sample",)),
    Habit("class class_label class_labels", "class=3", "label=VALUE", commands=("sample",)),
    Habit("metrics=fid metrics=FID", "metrics=fid", "measures.inception=FILE", "measures.n=1000"),
    Habit("train", "train=false",
          why="a trained model is measured by triptych-evaluate ckpt=RUN; trained=RUN makes a run of it"),
    Habit("model.beta model.kl_weight kl_weight", "model.beta=0.5",
          why="a bound's terms have no weights; DDPM's betas are schedule=betas schedule.beta_end=0.02"),
    Habit("exp_name experiment_name run_name", "run_name=first", "name=VALUE"),
    Habit("random_seed seed_everything", "seed_everything=2", "seed=VALUE", commands=BOTH),
    Habit("logger=none logger=false logger=null", "logger=none", "logger=csv"),
    Habit("output_dir outdir out_dir log_dir logdir save_dir paths.output_dir", "output_dir=/x",
          "paths.log_dir=VALUE"),
    Habit("output_dir outdir out_dir save_dir", "output_dir=pictures", "out=VALUE", commands=("sample",)),
    Habit("load_from_checkpoint pretrained", "load_from_checkpoint=last.ckpt", "init_from=VALUE"),
    Habit("ckpt ckpt_path checkpoint_path resume_from_checkpoint resume_from trainer.ckpt_path "
          "trainer.resume_from_checkpoint", "ckpt_path=last.ckpt",
          why="a run goes on by its own command, or by triptych-train resume=RUN alone; "
          "init_from=RUN begins with its weights"),
    Habit("ckpt_path checkpoint checkpoint_path load_from_checkpoint run trained", "ckpt_path=x",
          "ckpt=VALUE", commands=OPENING),
    Habit("callbacks.model_checkpoint* callbacks=model_checkpoint",
          "callbacks.model_checkpoint.monitor=val/loss", why=CALLBACKS["ModelCheckpoint"]),
    # Lightning's names of the Trainer's arguments
    *(Habit(key, "", f"trainer.{key}=VALUE") for key in (*Trainer.__annotations__, "fast_dev_run")),
    Habit("trainer.limit_test_batches", "trainer.limit_test_batches=0.1",
          why="a run is measured on exactly the whole test set; bound.repeats=1 is quick, test=false leaves "
          "it out"),
    Habit("trainer.fast_dev_run", "trainer.fast_dev_run=maybe",
          why="must be true, false or a number of steps"),
    Habit("trainer.enable_checkpointing", "trainer.enable_checkpointing=false",
          why="a run keeps its checkpoints, so that it goes on where it was; leave it out"),
    Habit("trainer.max_time", "trainer.max_time=5",
          why="must be null or DD:HH:MM:SS; ten minutes are 00:00:10:00"),
    Habit("trainer.callbacks", "trainer.callbacks=null",
          why="these are in callbacks; add one with +callbacks.NAME._target_=CLASS, take one out with "
          "callbacks.NAME=null"),
    Habit("trainer.logger", "trainer.logger=false",
          why="use logger=wandb, logger=tensorboard, logger=mlflow or logger=csv"),
    Habit("trainer.default_root_dir", "trainer.default_root_dir=/x",
          why="a run writes into its own directory; paths.log_dir=DIR moves all of them"),
    Habit("trainer.plugins", "trainer.plugins=null",
          why="a run writes its checkpoints whole or not at all, by a plugin of its own"),
    Habit("trainer.use_distributed_sampler", "trainer.use_distributed_sampler=true",
          why=f"{_BATCHES}, on any number of processes"),
    Habit("trainer.reload_dataloaders_every_n_epochs", "trainer.reload_dataloaders_every_n_epochs=1",
          why=_BATCHES),
    Habit("trainer.check_val_every_n_epoch", "trainer.check_val_every_n_epoch=1",
          why="use trainer.val_check_interval, in steps"),
    Habit("trainer.min_epochs", "trainer.min_epochs=1", why="use trainer.min_steps"),
    Habit("trainer.barebones", "trainer.barebones=true",
          why="every run reports its bound and keeps its checkpoints; use trainer.profiler"),
    Habit("trainer.limit_predict_batches", "trainer.limit_predict_batches=1",
          why="use triptych-sample, which has no batches to limit"),
    Habit("trainer.enable_autolog_hparams", "trainer.enable_autolog_hparams=true",
          why="the whole configuration is recorded, in config.yaml"),
    Habit("trainer.model_registry", "trainer.model_registry=x",
          why="use logger=wandb logger.wandb.artifacts=true"),
)
# fmt: on


def answer(
    key: str, value: str, problem: str = "no such key", command: str = "train", typed: Collection[str] = ()
) -> str:
    """Return a one-line answer, as ``lr=0.1: no such key; use optimizer.lr=0.1``; "" if there is none."""
    if line := replacement(key, value, command, typed):
        return f"{key}={value}: {problem}; use {line}"
    habit = _find(key, value, command)
    return f"{key}={value}: {habit.why}" if habit else ""


def replacement(key: str, value: str, command: str = "train", typed: Collection[str] = ()) -> str:
    """Return the overrides in place of a habit's; "" if there are none. ``typed``: keys typed already."""
    habit = _find(key, value, command)
    if habit is None or not habit.use:
        return ""
    beside = [word for word in habit.beside.split() if word.partition("=")[0] not in typed]
    name, _, text = habit.use.replace(VALUE, habit.convert(value)).partition("=")
    line = replacement(name, text, command, typed) or f"{name}={text}"  # it may be a habit's itself
    return " ".join([*beside, line])


def _find(key: str, value: str, command: str) -> Habit | None:
    """Return the first habit of a command with this name."""
    for habit in HABITS:
        if command in habit.commands and (habit.has(key) or habit.has(f"{key}={value}")):
            return habit
    return None


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
