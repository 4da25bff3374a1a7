"""Refuse undeclared keys, with the nearest name, and keys that do not go together.

Hydra's own strictness covers the command line; files packaged at the top (``experiment/``, ``ablation/``,
``debug/``, ``local/``) may add any key they like. No torch is imported.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import chain
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from triptych.config.build import keep_arguments
from triptych.config.habits import answer, nearest
from triptych.config.identity import leaves
from triptych.config.keys import FREE_GROUPS, OPTIONS, Key, below, fields, of_class, takes, unfit
from triptych.config.metric import SAMPLE_METRICS
from triptych.config.schema import COMMANDS, Train
from triptych.config.source import CONFIGS, choices_of
from triptych.config.trust import check_name
from triptych.errors import UserError, check_password

WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# names of a bound's figures
RESERVED = re.compile(r"bound|(bpd|nats_per_dim)(_\w*)?|gap|entropy|accuracy|cross_entropy")
FIGURES = ("bound", "bpd", "nats_per_dim", "gap", "accuracy", "cross_entropy")
OTHER_FIGURES = (
    "seconds.fit", "seconds.test", "cost.memory", "cost.evaluations", "estimator.mean", "estimator.variance",
    "baselines.uniform.mean", "baselines.histogram.mean",
)  # fmt: skip
LISTS = ("callbacks", "logger", "metrics")  # groups of which several files go together


def check_keys(cfg: DictConfig, hydra: DictConfig) -> None:
    """Refuse the first undeclared key or value, with its origin and the nearest name or fix: UserError."""
    command = str(hydra.job.config_name)
    for key in sorted(Train.__required_keys__ - {*cfg}):
        raise UserError(f"{key}: every run has it; type {key}=VALUE")
    own: Any = [key for key in cfg if key != "hydra"]  # a key may be a number
    every: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, own), resolve=True)
    plain = {key: value for key, value in every.items() if value != "???"}
    overrides = list(hydra.overrides.task)
    lists = check_lists(overrides, command)  # Hydra knows the first
    typed = [override.lstrip("+~").partition("=")[0] for override in overrides]
    for group in FREE_GROUPS:
        if typed.count(group) > 1:
            every = " ".join(one for one in overrides if one.lstrip("+~").startswith(f"{group}="))
            raise UserError(f"{every}: {group} is typed twice, and the last one only would count; type one")
    choices = dict(hydra.runtime.choices) | lists
    free = {g: c for g, c in choices.items() if g in FREE_GROUPS and c}
    if not (CONFIGS / "local" / "default.yaml").exists():
        free.pop("local", None)  # optional, and not there
    for group in free:
        if group in cfg and group != "paper":
            head = "its file must begin with # @package _global_, so that its keys are those of a run"
            raise UserError(f"{group}={free[group]}: {head}")
    files = f" (in {', '.join(f'{g}={c}' for g, c in free.items())})" if free else ""
    keep_arguments(plain, typed)
    top = Key(COMMANDS[command])
    for key, line in chain(_undeclared(plain, top), unfit(plain, top)):
        raise UserError(line if key in typed else line.replace(": ", f"{files}: ", 1))


def check_lists(overrides: Iterable[str], command: str) -> dict[str, str]:
    """Return {group: choices} of overrides with a list; UserError where one choice is meant."""
    several = (override.split("=", 1) for override in overrides if re.search(r"=\[.*\]$", override))
    groups = {group: value for group, value in several if choices_of(group)}
    for group, names in groups.items():
        if group in (*LISTS, *FREE_GROUPS) or group.split("/")[0] not in fields(Key(COMMANDS[command]).kind):
            continue
        every = names.strip("[] ")
        if not every:
            near = nearest("", choices_of(group))
            raise UserError(f"{group}={names}: a choice is needed; {near}")
        compare = f", or compare: -m {group}={every}" if command == "train" else ""
        one = f"{group}={every.split(',')[0].strip()}"
        raise UserError(f"{group}={names}: one choice only; type {one}{compare}")
    return groups


def check_declared(values: dict[str, Any], command: str) -> None:
    """Refuse the first undeclared key of a command that opens a run, as ``+step=100`` adds one."""
    for _, line in _undeclared(values, Key(COMMANDS[command]), command=command):
        raise UserError(line)


def _undeclared(
    group: dict[str, Any], key: Key, path: str = "", command: str = "train"
) -> Iterator[tuple[str, str]]:
    target = check_name(group["_target_"], path) if "_target_" in group else ""
    declared = fields(key.kind)
    for name, value in ((str(name), value) for name, value in group.items() if name not in OPTIONS):
        where = f"{path}.{name}" if path else name
        member = below(key, name, target) or Key()
        class_missing = value is not None and not (isinstance(value, dict) and "_target_" in value)
        if not takes(key, name, target):
            names = [*declared, *of_class(target or key.base)[0]]
            siblings = [where.removesuffix(name) + one for one in names]
            line = _habit(where, value, command)
            yield where, line or f"{where}={value!r}: no such key; {nearest(where, siblings)}"
        elif member.base and class_missing and name not in declared:
            fix = f"a new name needs its class, +{where}._target_=CLASS"
            line = _habit(where, value, command)
            yield where, line or f"{where}={value!r}: no such key; {fix}"
        elif isinstance(value, dict):
            yield from _undeclared(value, member, where, command)


def _habit(key: str, value: Any, command: str) -> str:
    """Return the answer to a habit's key; of a group, to its first key."""
    leaf, plain = next(leaves(value, key))
    if plain is None:
        return answer(leaf, "null", command=command)
    return answer(leaf, str(plain).lower() if isinstance(plain, bool) else str(plain), command=command)


def defaults(choices: dict[str, Any]) -> DictConfig:
    """Compose the files of ``choices`` alone, without overrides and free groups."""
    overrides = [f"{g}={c}" for g, c in choices.items() if c and g[:6] != "hydra/" and g not in FREE_GROUPS]
    overrides.append("~local")  # the one free group that is there by default
    hydra = GlobalHydra.instance()
    with ExitStack() as stack:
        if not hydra.is_initialized():  # in Python: there is no command that did it
            stack.enter_context(initialize_config_dir(str(CONFIGS), version_base="1.3"))
        return hydra.config_loader().load_configuration("train", overrides, RunMode.RUN)


def check_metric_names(names: Iterable[str]) -> None:
    """Check the names of user metrics: valid identifiers, none of the bound's figures."""
    for name in names:
        if not WORD.fullmatch(name):
            raise UserError(f"metrics.{name}: must be a name of letters, digits and _")
        if RESERVED.fullmatch(name):
            raise UserError(f"metrics.{name}: a figure of the bound has that name; choose another")


def check_together(config: dict[str, Any], typed: Collection[str] = ()) -> None:
    """Refuse the first conflict of keys.

    A warm-up longer than the run is refused only where it was ``typed``: an experiment's file may have one,
    as ``debug=fdr`` cuts any run to two steps.
    """
    check_metric_names(config.get("metrics") or {})
    for line in _conflicts(config):
        raise UserError(line)
    if isinstance(mlflow := (config.get("logger") or {}).get("mlflow"), dict):
        check_password(f"logger.mlflow.tracking_uri={mlflow.get('tracking_uri')}")


def _conflicts(config: Mapping[str, Any]) -> Iterator[str]:
    data, logger, trainer = config["data"], config.get("logger") or {}, config["trainer"]
    steps, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    # of val_fraction and test_fraction nothing is known here: the items may lie in folders of their own
    if config["checkpoint"] == "best" and data.get("val_size") == 0:
        yield "checkpoint=best: data.val_size=0 leaves no validation items to choose by; use checkpoint=last"
    for name in ("tensorboard", "mlflow"):
        if logger.get(name) and find_spec(name) is None:
            yield f"logger={name}: not installed; pip install 'triptych[loggers]'"
    parts = [(config.get(a) or {}).get(b) or {} for a, b in (("denoiser", "network"), ("objective", "loss"))]
    if trainer.get("strategy") == "fsdp" and any(
        str(part.get("_target_")).endswith(".EDM2") for part in parts
    ):
        yield "trainer.strategy=fsdp: no shard can keep the length of EDM2's weights; use trainer=ddp"
    network = (config.get("denoiser") or {}).get("network") or {}
    members, batch = network.get("members", 1), data["batch_size"]
    if str(network.get("_target_")).endswith(".ResNet") and members > batch:
        few = f"data.batch_size={batch} leaves some without items"
        yield f"denoiser.network.members={members}: {few}; use {batch} members at most"
    if config["test"] and data.get("test_size") == 0:
        yield "test=true: data.test_size=0 leaves no items to test; use test=false"
    if epochs and steps:
        other = f"trainer.max_steps={steps} is typed too"
        yield f"trainer.max_epochs={epochs}: {other}; one of them is the length"
    if not epochs and not steps:
        yield "trainer.max_steps=null: no length; type a number of steps, or trainer.max_epochs=N"
    if (share := trainer.get("limit_train_batches")) and not epochs:
        shortens = f"shortens epochs, and trainer.max_steps={steps} is the length"
        fix = "type trainer.max_epochs=1 in its place, or leave this out"
        yield f"trainer.limit_train_batches={share}: {shortens}; {fix}"


def warm_up_line(warmup: int, steps: int) -> str:
    """Return the line for a fit whose learning rate never reaches its value; "" for any other."""
    problem = f"all {steps} steps are warm-up"
    return f"lr_schedule.warmup_steps={warmup}: {problem}; use fewer" if warmup >= steps else ""


def check_used(config: Mapping[str, Any], typed: Collection[str]) -> None:
    """Refuse overrides that nothing in this configuration reads; not in sweeps: some cells need them."""
    check_guide(config if "guide" in typed else {})
    if "optimized_metric" in typed:
        check_optimized_metric(config)
    none = "measures.n=0 measures no samples; add measures.n=1000"
    untested = "test=false measures no samples; leave it out"
    for key, used, fix in (
        ("init_partial", config.get("init_from"), "no weights are taken; add init_from=RUN"),
        ("max_seeds", config.get("until"), "no seeds are added; add until=decided"),
        *((f"measures.{leaf}", config.get("test", True), untested) for leaf in config["measures"]),
        *((f"measures.{leaf}", config["measures"]["n"], none) for leaf in config["measures"] if leaf != "n"),
    ):
        group, _, leaf = key.rpartition(".")
        value = (config[group] if group else config).get(leaf)
        if key in typed and value and not used:
            raise UserError(f"{key}={str(value).lower() if value is True else value}: {fix}")


def check_optimized_metric(config: Mapping[str, Any]) -> None:
    """Refuse a figure that no run of this configuration reports, with the nearest name."""
    path = str(config["optimized_metric"])
    user_metrics = [str(name) for name in config.get("metrics") or ()]
    check_metric_names(user_metrics)
    measures = [*SAMPLE_METRICS, *user_metrics]
    of_items, of_samples = "|".join([RESERVED.pattern, *user_metrics]), "|".join(measures)
    known = rf"(train|val|test)\.({of_items})\.(mean|(draw_)?stderr)|measures\.({of_samples})\.(mean|stderr)"
    if path.startswith("test.") and not config.get("test", True):
        raise UserError(f"optimized_metric={path}: test=false tests nothing; use val.bound.mean")
    if path in OTHER_FIGURES or re.fullmatch(known, path):
        return
    figures = [f"{split}.{name}.mean" for split in ("val", "test") for name in (*FIGURES, *user_metrics)]
    others = [*OTHER_FIGURES, *(f"measures.{name}.mean" for name in measures)]
    group = [figure for figure in others if figure.startswith(path.partition(".")[0] + ".")]
    raise UserError(f"optimized_metric={path}: no such figure is measured; {nearest(path, group or figures)}")


def check_guide(config: Mapping[str, Any]) -> None:
    """Refuse a ``guide`` that the guidance does not use."""
    guide, guidance = config.get("guide"), config.get("guidance") or {}
    if guide is not None and guide not in guidance.values():
        fix = "add guidance=auto or guidance=classifier, or pass null"
        raise UserError(f"guide={guide}: this guidance uses none; {fix}")
