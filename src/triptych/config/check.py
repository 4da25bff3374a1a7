"""Refuse undeclared keys, suggesting the nearest key, and keys that contradict each other.

Hydra itself refuses undeclared keys on the command line, but not in files that are packaged at the
top (``experiment/``, ``ablation/``, ``debug/``, ``local/``). This module does not import torch.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from triptych.config.build import check_names, drop_unaccepted_arguments
from triptych.config.habits import advice_line, suggest_name
from triptych.config.identity import flatten_config
from triptych.config.keys import (
    FREE_GROUPS,
    Key,
    accepts_key,
    class_arguments,
    declared_fields,
    entries,
    invalid_values,
    override_keys,
)
from triptych.config.metric import SAMPLE_METRICS
from triptych.config.schema import COMMANDS, Train
from triptych.config.source import CONFIGS, group_choices
from triptych.errors import UserError, check_password

WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# Names of built-in metrics, which a user metric must not have.
RESERVED = re.compile(r"bound|(bpd|nats_per_dim)(_\w*)?|gap|entropy|accuracy|cross_entropy")
OTHER_METRICS = (  # entries of summary.json, besides metrics, that a search may optimise
    "seconds.fit", "seconds.test", "cost.memory", "cost.evaluations", "estimator.mean", "estimator.variance",
    "baselines.uniform.mean", "baselines.histogram.mean",
)  # fmt: skip
MERGED_GROUPS = ("callbacks", "logger", "metrics", *FREE_GROUPS)  # groups that merge several files
Problem = tuple[str, str]  # a dotted key and the error line


def check_keys(cfg: DictConfig, hydra: DictConfig) -> None:
    """Raise UserError for the first key that is not declared, or whose value is not allowed.

    The message names the file that may have set the key, and the nearest declared key.
    """
    missing = Train.__required_keys__ - {*cfg}
    if missing:
        key = min(missing)
        raise UserError(f"{key}: required key is missing; type {key}=VALUE")
    own: Any = [key for key in cfg if key != "hydra"]  # a key may be a number
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, own), resolve=True)
    plain = {key: value for key, value in values.items() if value != "???"}
    typed = override_keys(hydra.overrides.task)
    check_packaged_keys(plain)
    drop_unaccepted_arguments(plain, typed)
    check_names(plain)
    command = str(hydra.job.config_name)
    group = Key(COMMANDS[command])
    swept = _swept_key_prefixes(hydra)
    for key, line in chain(_undeclared_keys(plain, group, command), invalid_values(plain, group)):
        if key.startswith(swept):
            # The file's sweep sets another class here in each run, and each run is checked later.
            continue
        if key not in typed:
            line = line.replace(": ", f"{_files_that_add_keys(hydra.runtime.choices)}: ", 1)
        raise UserError(line)


def _swept_key_prefixes(hydra: DictConfig) -> tuple[str, ...]:
    """Return a prefix such as "objective.loss." for each config group that a sweep's file sets."""
    axes = hydra.sweeper.get("params") or {}
    return tuple(f"{axis.replace('/', '.')}." for axis in axes if group_choices(axis))


def check_packaged_keys(config: Mapping[str, Any]) -> None:
    """Raise UserError for a chosen file without "# @package _global_": its keys have no effect."""
    for group in sorted({*FREE_GROUPS} & {*config} - {"paper"}):
        raise UserError(
            f"{group}: no run uses the keys of the chosen file; begin this file with the line "
            "# @package _global_"
        )


def _files_that_add_keys(choices: Mapping[str, Any]) -> str:
    """Return " (in experiment=first)" with the chosen files of free groups; "" without any.

    Only such files may set keys that no other file has.
    """
    # Most clones lack the file of local=default.
    files = [
        f"{group}={choices[group]}"
        for group in FREE_GROUPS
        if choices.get(group) not in (None, "default")
    ]
    return f" (in {', '.join(files)})" if files else ""


def check_choice_lists(overrides: Iterable[str]) -> None:
    """Raise UserError for a list of choices, such as data=[a,b], for a group that takes one choice.

    Hydra would merge the files of such a list.
    """
    for override in overrides:
        group, _, value = override.partition("=")
        if value.startswith("[") and group not in MERGED_GROUPS and group_choices(group):
            raise UserError(
                f"{override}: pass one choice, or compare several with triptych-train -m"
            )


def check_declared(values: dict[str, Any], command: str) -> None:
    """Raise UserError for an undeclared key of ``triptych-evaluate`` or ``triptych-sample``."""
    check_names(values)
    for _, line in _undeclared_keys(values, Key(COMMANDS[command]), command):
        raise UserError(line)


def _undeclared_keys(config: dict[str, Any], group: Key, command: str) -> Iterator[Problem]:
    """Yield (dotted key, error line) for each key of a configuration that is not declared."""
    for entry in entries(config, group):
        if accepts_key(entry.group, entry.name, entry.target):
            continue
        names = [
            *declared_fields(entry.group.kind),
            *class_arguments(entry.target or entry.group.base)[0],
        ]
        siblings = [entry.place.removesuffix(entry.name) + name for name in names]
        near = suggest_name(entry.place, siblings)
        yield entry.place, _unknown_key_error(entry.place, entry.value, near, command)


def _unknown_key_error(key: str, value: Any, fix: str, command: str) -> str:
    """Return the error line for an undeclared key, with advice for this key or else ``fix``."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return advice_line(key, text, command=command) or f"{key}={value!r}: no such key; {fix}"


def compose_defaults(choices: dict[str, Any]) -> DictConfig:
    """Compose the configuration of the group choices alone: no other overrides, no free groups.

    Files of free groups, such as ``experiment/``, may set any key.
    """
    overrides = ["~local"]  # the only free group that train.yaml lists
    for group, choice in choices.items():
        if choice and not group.startswith("hydra/") and group not in FREE_GROUPS:
            overrides.append(f"{group}={choice}")
    if GlobalHydra.instance().is_initialized():  # true in a command, false in Python
        return _compose_train_config(overrides)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return _compose_train_config(overrides)


def _compose_train_config(overrides: list[str]) -> DictConfig:
    """Compose ``train.yaml`` with these overrides; Hydra must be initialised."""
    loader = GlobalHydra.instance().config_loader()
    return loader.load_configuration("train", overrides, RunMode.RUN)


def check_metric_names(names: Iterable[str]) -> None:
    """Raise UserError if a user metric's name is no identifier or is that of a built-in metric."""
    for name in names:
        if not WORD.fullmatch(name):
            raise UserError(f"metrics.{name}: must be a name of letters, digits and _")
        if RESERVED.fullmatch(name):
            raise UserError(f"metrics.{name}: a built-in metric has this name; choose another")


def check_contradictions(config: dict[str, Any]) -> None:
    """Raise UserError for settings that contradict each other, or for metric names not allowed."""
    check_metric_names(config.get("metrics") or {})
    check_run_length(config["trainer"])
    check_fsdp(config)
    check_tracking_uri(config.get("logger") or {})


def check_run_length(trainer: Mapping[str, Any]) -> None:
    """Raise UserError unless exactly one of max_steps and max_epochs is set."""
    steps, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    if epochs and steps:
        other = f"trainer.max_steps={steps} is set, too"
        raise UserError(f"trainer.max_epochs={epochs}: {other}; set one of them to null")
    if not epochs and not steps:
        fix = "type a number of steps, or trainer.max_epochs=N"
        raise UserError(f"trainer.max_steps=null: training length is not set; {fix}")


def check_fsdp(config: dict[str, Any]) -> None:
    """Raise UserError for settings that do not work with the split weights of FSDP."""
    if config["trainer"].get("strategy") != "fsdp":
        return
    if config["callbacks"].get("ema"):
        raise UserError(
            "trainer.strategy=fsdp: averages of sharded weights are not supported; pass "
            "callbacks.ema=null weights=raw"
        )
    clip = config["trainer"].get("gradient_clip_val")
    if clip:
        raise UserError(
            f"trainer.gradient_clip_val={clip}: clipping is not supported with sharded weights; "
            "pass null"
        )
    if any(str(value).endswith(".EDM2") for _, value in flatten_config(config)):
        raise UserError(
            "trainer.strategy=fsdp: EDM2 normalizes whole weights, which FSDP splits; use "
            "trainer=ddp"
        )


def check_tracking_uri(logger: Mapping[str, Any]) -> None:
    """Raise UserError for a password in MLflow's tracking URI, which the run would record."""
    mlflow = logger.get("mlflow")
    if isinstance(mlflow, dict):
        check_password(f"logger.mlflow.tracking_uri={mlflow.get('tracking_uri')}")


def warm_up_warning(warmup: int, steps: float) -> str:
    """Return a warning if the whole fit is learning-rate warm-up, else ""."""
    if warmup < steps:
        return ""
    return f"lr_schedule.warmup_steps={warmup}: all {steps} training steps are warm-up; lower it"


def check_overrides_are_read(config: Mapping[str, Any], typed_keys: Collection[str]) -> None:
    """Raise UserError if ``guide`` or ``optimized_metric`` was typed but has no effect."""
    if "guide" in typed_keys:
        check_guide(config)
    if "optimized_metric" in typed_keys:
        check_optimized_metric(config)


def check_optimized_metric(config: Mapping[str, Any]) -> None:
    """Raise UserError if no run of this configuration reports ``optimized_metric``."""
    path = str(config["optimized_metric"])
    user_metrics = [str(name) for name in config.get("metrics") or ()]
    check_metric_names(user_metrics)
    of_items = "|".join([RESERVED.pattern, *user_metrics])
    of_samples = "|".join([*SAMPLE_METRICS, *user_metrics])
    splits = "train|val|test" if config.get("test", True) else "train|val"
    figure = rf"({splits})\.({of_items})\.(mean|(draw_)?stderr)"
    measure = rf"measures\.({of_samples})\.(mean|stderr)"
    if path in OTHER_METRICS or re.fullmatch(f"{figure}|{measure}", path):
        return
    raise UserError(
        f"optimized_metric={path}: no such metric is recorded; must be like val.bound.mean, "
        f"measures.fid.mean or one of {', '.join(OTHER_METRICS)}"
    )


def check_guide(config: Mapping[str, Any]) -> None:
    """Raise UserError if ``guide`` is set but the chosen guidance does not use it."""
    guide, guidance = config.get("guide"), config.get("guidance") or {}
    if guide is not None and guide not in guidance.values():
        raise UserError(
            f"guide={guide}: the chosen guidance does not use it; add guidance=auto or "
            "guidance=classifier, or pass null"
        )
