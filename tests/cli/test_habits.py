"""What users of Lightning and Hydra type out of habit: it works, or is answered by the line that does."""

import inspect
import re

import pytest
import yaml
from PIL import Image

from tests.refusal import refused
from triptych.cli.arguments import as_hydra_wants
from triptych.config.compose import compose_command
from triptych.config.habits import INSTEAD, MEANT, answer
from triptych.config.schema import Trainer
from triptych.config.source import choices_of
from triptych.config.trust import check_name
from triptych.errors import UserError
from triptych.study.prerequisites import check_single

CALLBACK = "+callbacks.x._target_=pytorch_lightning.callbacks."
SCHEDULE = "lr_schedule._target_=torch.optim.lr_scheduler."


def configuration(line: str) -> dict:
    """What the command would record, without a directory and without torch."""
    return check_single(compose_command("train", as_hydra_wants(line.split(), "train")))


def value_at(config: dict, key: str):
    for name in key.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (  # of two lengths the typed one decides, not the file's
            "trainer.max_epochs=2 trainer.limit_train_batches=0.1 trainer.limit_val_batches=2 "
            "trainer.limit_test_batches=1.0 trainer.deterministic=true trainer.num_sanity_val_steps=2 "
            "trainer.max_time='00:00:10:00' trainer.gradient_clip_algorithm=value "
            "+trainer.detect_anomaly=true trainer.enable_model_summary=true trainer.min_steps=2",
            {"trainer.max_steps": None},
        ),
        ("+trainer.fast_dev_run=True", {"trainer.max_steps": 2, "bound.repeats": 1}),
        ("trainer.fast_dev_run=5", {"trainer.max_steps": 5, "bound.repeats": 1}),
        ("trainer.fast_dev_run=false", {"trainer.max_steps": 1200}),
        ("experiment=ring debug=fdr", {"trainer.max_steps": 2, "trainer.val_check_interval": 1}),
        (
            "optimizer=sgd optimizer.dampening=0.1 lr_schedule=constant callbacks=[default,early_stopping] "
            f"logger=[wandb,csv] {CALLBACK}EarlyStopping +callbacks.x.monitor=val/bound",
            {
                "optimizer._target_": "torch.optim.SGD",
                "callbacks.early_stopping.patience": 5,
                "callbacks.ema.sigma_rel": 0.05,
                "logger.wandb.mode": "auto",
            },
        ),
    ],
)
def test_a_habit_that_works(line, values):
    """What is typed is in the record, and what follows from it."""
    config, typed = configuration(line), dict(one.lstrip("+").split("=", 1) for one in line.split())
    own = {k: yaml.safe_load(v) for k, v in typed.items() if "." in k and "fast_dev" not in k}
    assert {key: value_at(config, key) for key in own | values} == own | values


def test_of_a_class_typed_in_place_of_a_files_the_files_other_keys_go():
    """A cosine's floor is no argument of StepLR's, AdamW's decay not SGD's: nobody typed them."""
    config = configuration(
        f"optimizer._target_=torch.optim.SGD optimizer.momentum=0.9 {SCHEDULE}StepLR lr_schedule.step_size=3"
    )
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 8.0e-3, "momentum": 0.9}
    assert config["optimizer"] == sgd
    assert config["lr_schedule"] == {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 3}


@pytest.mark.parametrize(
    "line",
    [
        f"optimizer._target_=torch.optim.NAdam {SCHEDULE}StepLR lr_schedule.step_size=3",
        "experiment=ring trainer.max_epochs=3",
    ],
)
def test_what_cfg_prints_is_what_a_run_has(line, capsys):
    with pytest.raises(SystemExit):
        as_hydra_wants([*line.split(), "--cfg", "job", "--resolve"], "train")
    shown, config = yaml.safe_load(capsys.readouterr().out), configuration(line)
    assert all(shown[group] == config[group] for group in ("optimizer", "lr_schedule", "trainer"))


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("lr=0.1", "optimizer.lr=0.1"),
        ("n_epochs=3", "trainer.max_epochs=3"),
        ("gpus=2", "trainer.accelerator=gpu trainer.devices=2"),
        ("root=/x", "data.root=/x"),
        ("fast_dev_run=true", "trainer.fast_dev_run=true"),
        ("guidance_scale=3", "guidance=classifier_free guidance.scale=3"),
    ],
)
def test_a_synonym_is_answered_with_the_line_to_type(typed, line):
    assert answer(*typed.split("=", 1)) == f"{typed}: no such key; use {line}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("+lr=0.1", "lr=0.1: no such key; use optimizer.lr=0.1"),
        ("model.lr=0.1", "model.lr=0.1: no such key; use optimizer.lr=0.1"),
        (
            "guidance.scale=3",
            "no such key with this choice of guidance; guidance=auto or guidance=classifier or ",
        ),
        ("data=ring data.root=/x", "no such key with this choice of data; data=mnist or data=folder "),
        ("width=64", "did you mean denoiser.network.width or model.network.width?"),
        ("steps=5", "did you mean bound.steps or objective.steps or sampler.steps?"),
        ("model=vae denoiser.network.width=8", "has a network of its own; type model.network.width=8"),
        ("model=vae denoiser.network.heads=8", "no such key with this choice of denoiser; denoiser=dit"),
        ("data=shapes data.embeddings=/x", "type +data.embeddings="),
        ("data/encoder=words", "no such choice with this data; data=captioned_folder or "),
        ("objective/loss=mse", "objective/loss=mse: no such choice; use objective/loss=simple"),
        ("metrics=fid", "metrics=fid: no such choice; use measures.n=1000 measures.inception=FILE"),
        ("objective/loss=p2 objective/loss.k=0", "a slash is for choices; type objective.loss.k=0"),
        ("sampler=ddpm", "sampler=ddpm: no such choice; use sampler=ancestral"),
        ("trainer.limit_test_batches=0.1", "exactly the whole test set"),
        ("trainer.limit_train_batches=0.1", "trainer.max_epochs=1"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0"),
        ("trainer.max_epochs=3 trainer.max_steps=5", "trainer.max_epochs=3: trainer.max_steps=5 is typed"),
        ("trainer.max_steps=null", "trainer.max_steps=null: no length"),
        ("trainer.max_time=5m", "DD:HH:MM:SS"),
        ("trainer.enable_checkpointing=false", "enable_checkpointing=false: a run keeps its"),
        ("+trainer.use_distributed_sampler=true", "(seed, step)"),
        ("trainer.fast_dev_run=maybe", "trainer.fast_dev_run=maybe: must be true, false or a number"),
        (f"{CALLBACK}ModelCheckpoint", "checkpoint=best"),
        (f"{CALLBACK}LambdaCallback", "LambdaCallback: not a class that a configuration may name"),
        (f"{CALLBACK}EarlyStopping +callbacks.x.patiense=3", "callbacks.x.patiense=3: no such key; did"),
        ("callbacks.x._target_=pytorch_lightning.callbacks.Timer", "+callbacks.x._target_="),
        ("model.foo=1", "model.foo=1: no such key; choose from model."),
        ("+metrics.x=3", "metrics.x=3: no such key; a new name needs its class, +metrics.x._target_=CLASS"),
        (
            "optimizer._target_=torch.optim.SGD optimizer.amsgrad=true",
            "optimizer.amsgrad=true: torch.optim.SGD has no such argument",
        ),
        (f"{SCHEDULE}LambdaLR", "takes code"),
        (f"{SCHEDULE}StepLR", "lr_schedule: torch.optim.lr_scheduler.StepLR needs lr_schedule.step_size"),
        ("callbacks=[default,early_stoping]", "early_stop"),
    ],
)  # fmt: skip
def test_a_habit_that_is_answered(line, words):
    refused(lambda: configuration(line), words)


def test_the_table_names_keys_that_there_are(tmp_path):
    """Each answer is a choice or a key: all the keys together are one line that is taken."""
    for i in range(40):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    values = {"trainer.accelerator": "cpu", "trainer.precision": "bf16-mixed", "trainer.strategy": "auto"}
    values |= {"trainer.profiler": "simple", "trainer.gradient_clip_algorithm": "norm", "trainer.devices": 2}
    values |= {"trainer.limit_test_batches": 1.0, "trainer.max_time": "00:00:10:00", "data.root": tmp_path}
    values |= {"trainer.val_check_interval": 2, "data.size": 8, "guidance.scale": 2, "paths.data_dir": "x"}
    values |= {"measures.n": 8, "measures.inception": tmp_path / "0.png"}
    others = {"data.num_workers", "data.pin_memory", "trainer.fast_dev_run", "trainer.max_steps"}
    line = ["data=folder", "guidance=classifier_free"]
    for part in (part for meant in MEANT.values() for part in meant.split()):
        key, _, choice = part.partition("=")
        if choice and "." not in key:
            assert choice in choices_of(key), part
        elif "." in key and key not in others:
            flag = key.split(".")[1] in ("benchmark", "deterministic", "detect_anomaly", "inference_mode")
            flag |= key.split(".")[1].startswith(("enable_", "sync_"))
            line += [f"{key}={values.get(key, 'true' if flag else 1)}"]
    configuration(" ".join(dict.fromkeys(line)))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("pytorch_lightning.callbacks.RichProgressBar", "trainer.enable_progress_bar"),
        ("pytorch_lightning.callbacks.StochasticWeightAveraging", "callbacks.ema"),
        ("lightning.pytorch.callbacks.LearningRateMonitor", "did you mean pytorch_lightning.callbacks.Learn"),
        ("torch.optim.lr_scheduler.StepLRR", "torch.optim.lr_scheduler has no class of that name"),
        ("torch.optim.lr_scheduler.SequentialLR", "takes other schedules"),
    ],
)
def test_a_class_that_may_not_be_named_is_answered(target, words):
    with pytest.raises(UserError, match=re.escape(words)):
        check_name(target)


def test_each_key_of_lightnings_trainer_passes_or_is_answered():
    """By Lightning's own signature, so that an upgrade that adds one is noticed."""
    import pytorch_lightning as pl

    every = {*inspect.signature(pl.Trainer.__init__).parameters} - {"self"}
    answered = {key.removeprefix("trainer.") for key in INSTEAD if key.startswith("trainer.")}
    assert every == {*Trainer.__annotations__} | answered
    both = {"limit_test_batches", "max_time"}  # what else they may say
    assert {*Trainer.__annotations__} & answered == both
