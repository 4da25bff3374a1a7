"""Check keys of a run that depend on one another; nothing but the configuration is looked at."""

import re
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from triptych.errors import UserError, check_password

TIME = re.compile(r"\d+:\d\d:\d\d:\d\d")
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
RESERVED = re.compile(r"(bpd|nats_per_dim)(_.*)?|gap|entropy|accuracy|cross_entropy")  # by a bound's figures


def check_metric_names(names: Iterable[str]) -> None:
    """Their figures stand beside the bound's; UserError for a name that is none, or the bound's own."""
    for name in names:
        if not WORD.fullmatch(name):
            raise UserError(f"metrics.{name}: must be a name of letters, digits and _")
        if RESERVED.fullmatch(name):
            raise UserError(f"metrics.{name}: a figure of the bound has that name; choose another")


def check_together(config: dict[str, Any], typed: Collection[str] = ()) -> None:
    """What depends on more than one key of a run; UserError for keys that do not go together.

    What an experiment's file may say in vain is refused where it was ``typed``: a warm-up longer than the
    run, as ``debug=fdr`` is two steps of a run with its own warm-up.
    """
    check_metric_names(config.get("metrics") or {})
    for key in ("val_size", "val_fraction"):
        if config["checkpoint"] == "best" and config["data"].get(key) == 0:
            raise UserError(
                f"checkpoint=best: data.{key}=0 leaves no validation items to choose by; use checkpoint=last"
            )
    for name in ("tensorboard", "mlflow"):
        if (config["logger"] or {}).get(name) and find_spec(name) is None:
            raise UserError(f"logger={name}: not installed; pip install 'triptych[loggers]'")
    mlflow = (config["logger"] or {}).get("mlflow")
    if isinstance(mlflow, dict):
        check_password(f"logger.mlflow.tracking_uri={mlflow.get('tracking_uri')}")
    for key in ("test_size", "test_fraction"):
        if config["test"] and config["data"].get(key) == 0:
            raise UserError(f"test=true: data.{key}=0 leaves no items to test; use test=false")
    _check_length(config, typed)


def _check_length(config: dict[str, Any], typed: Collection[str]) -> None:
    trainer = config["trainer"]
    warm, steps, epochs = (
        config["lr_schedule"].get("warmup_steps", 0),
        trainer.get("max_steps"),
        trainer.get("max_epochs"),
    )
    if isinstance(devices := trainer["devices"], list) and len({*devices}) < len(devices):
        raise UserError(f"trainer.devices={devices}: a device is listed twice; list each once")
    if epochs and steps:
        raise UserError(
            f"trainer.max_epochs={epochs}: trainer.max_steps={steps} is typed too; one of them is the length"
        )
    if not epochs and not steps:
        raise UserError("trainer.max_steps=null: no length; type a number of steps, or trainer.max_epochs=N")
    if steps and (trainer.get("min_steps") or 0) > steps and "trainer.min_steps" in typed:
        raise UserError(f"trainer.min_steps={trainer['min_steps']}: trainer.max_steps={steps} end before it")
    if (share := trainer.get("limit_train_batches")) and not epochs:
        raise UserError(
            f"trainer.limit_train_batches={share}: shortens epochs, and trainer.max_steps={steps} is the "
            "length; add trainer.max_epochs=1, or type fewer steps"
        )
    for key, most in (("limit_train_batches", 1.0), ("limit_val_batches", 1.0)):
        value = trainer.get(key)
        if isinstance(value, float) and value > most:
            raise UserError(f"trainer.{key}={value}: a share is at most 1.0; a number of batches is whole")
    time = trainer.get("max_time")
    if time is not None and not TIME.fullmatch(time):
        raise UserError(f"trainer.max_time={time}: not in DD:HH:MM:SS; ten minutes are 00:00:10:00")
    if steps and warm > steps and "lr_schedule.warmup_steps" in typed:
        raise UserError(
            f"lr_schedule.warmup_steps={warm}: trainer.max_steps={steps} end before it; "
            f"must be a whole number from 0 to {steps}"
        )


def check_used(config: Mapping[str, Any], typed: Collection[str]) -> None:
    """UserError for a key that was ``typed`` in vain: nothing in this configuration reads it.

    Cells of a sweep are not asked one by one: some have no use for what others need.
    """
    check_guide(config if "guide" in typed else {})
    unused = {"init_partial": "" if config.get("init_from") else "no weights are taken; add init_from=RUN"}
    unused["max_seeds"] = "" if config.get("until") else "no seeds are added; add until=decided"
    for key in ("classifier", "contrastive", "inception", "over", "repeats"):
        none = "measures.n=0 measures no samples; add measures.n=1000"
        unused[f"measures.{key}"] = "" if config["measures"]["n"] else none
    split, name, *_ = f"{config['optimized_metric']}..".split(".")
    if (
        split in ("val", "test")
        and not RESERVED.fullmatch(name)
        and name not in (config.get("metrics") or {})
    ):
        unused["optimized_metric"] = (
            f"no metric {name} is measured there; use {split}.bpd.mean, or add metrics"
        )
    for key in filter(unused.get, typed):
        group, _, leaf = key.rpartition(".")
        if value := (config[group] if group else config).get(leaf):
            raise UserError(f"{key}={str(value).lower() if value is True else value}: {unused[key]}")


def check_guide(config: Mapping[str, Any]) -> None:
    """UserError for a ``guide`` that the guidance does not use."""
    guide, guidance = config.get("guide"), config.get("guidance") or {}
    if guide is not None and guide not in guidance.values():
        raise UserError(
            f"guide={guide}: this guidance uses none; add guidance=auto or guidance=classifier, or pass null"
        )
