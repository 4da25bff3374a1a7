"""What users of Lightning and Hydra type out of habit works, or the answer names the right line."""

import re

import pytest
import yaml
from PIL import Image

from tests.refusal import refused
from triptych.cli.arguments import read_command_line
from triptych.config.compose import checked_values, compose_command, without_hydra
from triptych.config.explain import EXPLANATIONS
from triptych.config.habits import HABITS, Habit, advice
from triptych.config.keys import Key, declared_fields
from triptych.config.schema import COMMANDS
from triptych.config.source import CONFIGS
from triptych.config.trust import check_name
from triptych.errors import UserError
from triptych.run.single import request_single

CALLBACK = "+callbacks.x._target_=pytorch_lightning.callbacks."
SCHEDULE = "lr_schedule._target_=torch.optim.lr_scheduler."


def configuration(line: str) -> dict:
    """Return what the command would record, without a directory and without torch."""
    return request_single(
        compose_command("train", read_command_line(line.split(), "train").overrides)
    ).config


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
def test_lightning_and_hydra_habit_is_accepted(line, values):
    """The record has what is typed, and what follows from it."""
    config, typed = configuration(line), dict(one.lstrip("+").split("=", 1) for one in line.split())
    own = {k: yaml.safe_load(v) for k, v in typed.items() if "." in k}
    assert {key: value_at(config, key) for key in own | values} == own | values


def test_target_override_drops_keys_of_former_class():
    """StepLR takes no floor, SGD has no decay of AdamW: the user typed neither."""
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
def test_cfg_job_prints_configuration_of_run(line, capsys):
    with pytest.raises(SystemExit):
        read_command_line([*line.split(), "--cfg", "job", "--resolve"], "train")
    shown, config = yaml.safe_load(capsys.readouterr().out), configuration(line)
    assert all(shown[group] == config[group] for group in ("optimizer", "lr_schedule", "trainer"))


CONTEXT = {"train": [], "evaluate": ["ckpt=x"], "sample": ["ckpt=x"]}
ROWS = [(command, habit) for habit in HABITS if habit.example for command in habit.commands]


def show(command: str, *line: str) -> None:
    """Return the output of ``triptych-COMMAND ... --cfg job``."""
    with pytest.raises(SystemExit) as ended:
        read_command_line([*CONTEXT[command], *line, "--cfg", "job"], command)
    assert ended.value.code == 0


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Make a current directory with images."""
    for i in range(40):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("command", "habit"), ROWS, ids=[f"{c} {h.example}" for c, h in ROWS])
def test_habit_example_is_refused_with_working_replacement(command, habit, images):
    key, value = habit.example.split("=", 1)
    line = habit.use.replace("VALUE", value)
    said = refused(lambda: show(command, habit.example), f"use {line}" if line else habit.why)
    assert said.startswith(f"{habit.example}: ")
    if line:
        show(command, *line.replace("FOLDER", ".").replace("FILE", "0.png").split())


@pytest.mark.parametrize("habit", HABITS, ids=[habit.names.split()[0] for habit in HABITS])
def test_every_alias_of_habit_gets_same_suggestion(habit: Habit):
    """No row above answers the name, because the first row with a name counts."""
    value = habit.example.partition("=")[2]
    for name in habit.names.split():
        key, _, choice = name.partition("=")
        for command in habit.commands:
            line = advice(key, choice or value, command)
            assert line == (habit.why or f"use {habit.use.replace('VALUE', choice or value)}")


# The others are held by study/test_launchers.py and cli/test_bad_inputs.py.
SHOWN = [row for row in EXPLANATIONS if not re.search("not installed|configuration file", row.line)]


@pytest.mark.parametrize("row", SHOWN, ids=[row.example for row in SHOWN])
def test_an_error_of_hydras_is_explained_by_its_row_in_one_line(row):
    """It is the first row whose pattern is in the error's text, with the row's words."""
    said = refused(lambda: compose_command("train", [row.example]))
    words = re.split(r"\{\w+\}", row.line)
    assert re.fullmatch(".+".join(map(re.escape, words)), said)


KEYS = [
    (command, key)
    for command in ("evaluate", "sample")
    for key in declared_fields(Key(COMMANDS[command]).kind)
]


@pytest.mark.parametrize(("command", "key"), [pair for pair in KEYS if pair[1] != "condition_from"])
def test_mistyped_key_suggests_nearest_key_of_same_command(command, key, monkeypatch):
    """The process does not tell the command, because Python may call it."""
    monkeypatch.setattr("sys.argv", ["triptych-train"])
    typed = f"{key}{key[-1]}=3"
    refused(lambda: compose_command(command, [typed]), f"{typed}: no such key; did you mean {key}?")


@pytest.mark.parametrize(
    ("command", "line", "words"),
    [
        ("sample", "steps=3", "did you mean sampler.steps?"),
        ("evaluate", "sampler.eta=0.5", "no such key; "),
        (
            "evaluate",
            "batch_size=1,2",
            "batch_size=1,2: several values are given; type one, or sweep with",
        ),
        ("evaluate", "steps", "steps: must be KEY=VALUE; quote"),
        ("evaluate", "3", "3: must be KEY=VALUE; quote"),  # ckpt is typed already
        ("evaluate", "+step=100", "step=100: no such key; did you mean steps?"),
        ("sample", "+foo=1", "foo=1: no such key; choose from "),
        ("evaluate", "logs/runs/a=b", "logs/runs/a=b: no such key; "),
        ("sample", "cascade=[a/b=1,c]", "quote special characters, as in ckpt='a=b'"),
    ],
)
def test_evaluate_and_sample_refuse_unknown_keys_with_suggestion(command, line, words):
    overrides = read_command_line([*CONTEXT[command], line], command).overrides
    said = refused(
        lambda: checked_values(without_hydra(compose_command(command, overrides)), command), words
    )
    assert "it exists with" not in said


def test_habits_page_lists_every_habit():
    page = (CONFIGS.parent / "docs" / "habits.md").read_text()
    assert [row for row in map(page_row, HABITS) if row not in page] == []


def page_row(habit: Habit) -> str:
    names = ", ".join(f"`{name}`" for name in habit.names.split())
    here = f"`{habit.use}`" if habit.use else habit.why
    return f"| {names} | {', '.join(habit.commands)} | {here} |"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("+lr=0.1", "lr=0.1: use optimizer.lr=0.1"),
        ("model.lr=0.1", "model.lr=0.1: no such key; use optimizer.lr=0.1"),
        (
            "guidance.scale=3",
            "no such key; it exists with guidance=auto or guidance=classifier or ",
        ),
        ("data=ring data.root=/x", "no such key; it exists with data=mnist or data=folder "),
        ("width=64", "did you mean denoiser.network.width or model.network.width?"),
        ("steps=5", "did you mean bound.steps or objective.steps or sampler.steps?"),
        ("objective/loss=mse", "objective/loss=mse: no such choice; use objective/loss=simple"),
        ("metrics=fid", "metrics=fid: no such choice; use measures.inception=FILE"),
        ("sampler=ddpm", "sampler=ddpm: no such choice; use sampler=ancestral"),
        ("trainer.limit_test_batches=0.1", "the whole test set"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0"),
        ("trainer.max_epochs=3 trainer.max_steps=5", "trainer.max_epochs=3: trainer.max_steps=5 is set"),
        ("trainer.max_steps=null", "trainer.max_steps=null: training length is not set"),
        ("trainer.enable_checkpointing=false", "a run needs its checkpoints"),
        (f"{CALLBACK}ModelCheckpoint", "checkpoint=best"),
        (f"{CALLBACK}LambdaCallback", "LambdaCallback: class is not allowed in a configuration"),
        (f"{CALLBACK}EarlyStopping +callbacks.x.patiense=3", "callbacks.x.patiense=3: no such key; did"),
        ("callbacks.x._target_=pytorch_lightning.callbacks.Timer", "+callbacks.x._target_="),
        ("model.foo=1", "model.foo=1: no such key; choose from model."),
        ("+metrics.x=3", "metrics.x=3: must be null or a group of keys"),
        (
            "optimizer._target_=torch.optim.SGD optimizer.amsgrad=true",
            "optimizer.amsgrad=true",
        ),
        (f"{SCHEDULE}LambdaLR", "needs a function"),
        ("callbacks=[default,early_stoping]", "early_stop"),
    ],
)  # fmt: skip
def test_habit_is_refused_with_suggestion(line, words):
    refused(lambda: configuration(line), words)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("pytorch_lightning.callbacks.RichProgressBar", "trainer.enable_progress_bar"),
        ("pytorch_lightning.callbacks.StochasticWeightAveraging", "callbacks.ema"),
        (
            "lightning.pytorch.callbacks.LearningRateMonitor",
            "did you mean pytorch_lightning.callbacks.Learn",
        ),
        ("torch.optim.lr_scheduler.StepLRR", "did you mean torch.optim.lr_scheduler.StepLR?"),
        ("torch.optim.lr_scheduler.SequentialLR", "needs other schedulers"),
    ],
)
def test_unusable_target_class_is_refused_with_alternative(target, words):
    with pytest.raises(UserError, match=re.escape(words)):
        check_name(target)
