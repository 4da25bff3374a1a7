"""Read and check a published table and its claims: the node ``paper`` in ``configs/paper``.

Commands import this module without numpy or torch. A sweep sets its scale and records the claims
before its first run.
"""

import itertools
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from triptych.config.compose import to_plain
from triptych.config.describe import read_yaml
from triptych.config.habits import suggest_name
from triptych.config.identity import cores, flatten_config, grid_keys
from triptych.config.keys import check_values
from triptych.config.metric import SAMPLE_METRICS
from triptych.config.schema import PaperClaim, PaperNode
from triptych.config.source import CONFIGS, config_folders
from triptych.errors import UserError
from triptych.run.sweep_record import SweepRecord
from triptych.study.papers.claim import OF_THE_BOUND, OF_THE_RUN, Axes, Claim, read_claim
from triptych.study.papers.labels import LABELS, Node, claim_labels

# Keys of a claim that do not affect its statistics.
TEXT_KEYS = (
    "published", "scale", "kind", "table", "figure", "section", "quote", "otherwise",
    "untestable", "counts_as", *LABELS,
)  # fmt: skip


def read_axes(
    jobs: Iterable[Sequence[str]], keys: Iterable[str], measures: Node
) -> dict[str, list[str]]:
    """Return the values of ``keys`` in a grid's jobs, and those of the key ``measures.over``."""
    axes: dict[str, list[str]] = {key: [] for key in keys}
    for override in itertools.chain.from_iterable(jobs):
        key, _, text = override.lstrip("+").partition("=")
        value = text.strip("'\"")
        if key in axes and value not in axes[key]:
            axes[key].append(value)
    over = measures["over"]
    if over and measures["n"]:
        if not isinstance(over, str):
            over = str(over[0])
        axes[over] = [f"{value:g}" for value in measures["values"]]
    return axes


def decisive_keys(claims: Node, scale: str = "small") -> dict[str, Any]:
    """Return {claim: its keys that affect the verdict} of a node's claims at a scale."""
    decisive = {}
    for name, claim in claims_at_scale(claims, scale).items():
        decisive[name] = {key: claim[key] for key in claim if key not in TEXT_KEYS}
    return decisive


def settings_digest(file: Node, scale: str) -> str:
    """Return a digest of the settings in a paper's file for runs at a scale, without ``paper``."""
    settings = dict(file)
    settings.pop("paper", None)
    hydra = settings.pop("hydra", None) or {}
    sweeper = dict(hydra.get("sweeper", {}))
    sweeper["scales"] = sweeper.get("scales", {}).get(scale)
    settings["sweeper"] = sweeper
    if scale == "small":
        # Leave out files that only set values of other scales.
        names = file.get("defaults", [])
        settings["defaults"] = [name for name in names if not _names_only_scales(str(name))]
    return sha256(yaml.safe_dump(settings).encode()).hexdigest()[:16]


def _names_only_scales(default: str) -> bool:
    """Return whether an entry of ``defaults`` names a file that sets nothing but scales."""
    file = CONFIGS / f"{default.lstrip('/')}.yaml"
    if not file.is_file():
        return False
    return all(
        key.startswith("hydra.sweeper.scales.") for key, _ in flatten_config(read_yaml(file))
    )


def claims_at_scale(claims: Node, scale: str) -> dict[str, Any]:
    """Return a node's claims that are made at a scale."""
    scales = (None, scale)
    return {str(name): claims[name] for name in claims if claims[name].get("scale") in scales}


def read_claims(node: Node, axes: Axes, scale: str = "small") -> list[Claim]:
    """Return the claims of a node ``paper``; UserError: a wrong value, or one not in ``axes``."""
    check_values({"paper": dict(node)})
    check_keys_present("paper", node, PaperNode)
    settings = {key: values for key, values in axes.items() if key != "seed"}
    nodes = claims_at_scale(node["claims"], scale)
    labels = claim_labels(nodes, scale)
    claims = []
    for name, claim in nodes.items():
        check_keys_present(f"paper.claims.{name}", claim, PaperClaim)
        claims.append(replace(read_claim(name, claim, settings), **labels[name]))
    return claims


def check_keys_present(path: str, node: Node, declared: Any) -> None:
    """Raise UserError if a node lacks a required key of the TypedDict ``declared``."""
    for key in declared.__required_keys__:
        if key not in node:
            raise UserError(f"{path}.{key}: required key is missing")


def check_claimed_metrics(claims: Iterable[Claim], config: Node, axes: Axes) -> None:
    """Raise UserError for a metric that no run of the sweep will have."""
    if any(key.split(".")[0] in ("metrics", "setting") for key in axes):
        return  # a setting may add metrics, so the names are unknown
    known = [*OF_THE_BOUND, *OF_THE_RUN, *(config.get("metrics") or {})]
    if config["measures"]["n"] or "measures.n" in axes:
        known += SAMPLE_METRICS
    for claim in claims:
        for metric in {point.metric for point in claim.points} - {*known}:
            raise UserError(
                f"paper.claims.{claim.name}.metric={metric}: no run of this sweep records it; "
                f"{suggest_name(metric, known)} (sample metrics need measures.n=1000)"
            )


def scale_values(config: DictConfig) -> dict[str, Any]:
    """Return {key: value} of the chosen scale, {} of the small one; UserError: unknown scale."""
    scale = config.get("scale", "small")
    if scale == "small":
        return {}
    values: Any = OmegaConf.select(config, f"hydra.sweeper.scales.{scale}")
    if not isinstance(values, DictConfig):
        reason = values or "has no such scale; use scale=small"
        paper = config.hydra.runtime.choices.get("paper")
        raise UserError(f"scale={scale}: paper={paper} {reason}")
    return to_plain(values)


def set_scale(config: DictConfig) -> list[str]:
    """Put the chosen scale's values into the sweep's grid; return keys with one value for all runs.

    A value replaces the grid's value of its key, or adds the key. null removes a key from the grid;
    "~key" removes the key from the configuration.
    """
    values = scale_values(config)
    if not values:
        return []
    sweeper = config.hydra.sweeper
    with open_dict(config):
        # Set the settings first, as a value may refer to them by interpolation.
        sweeper.settings = dict(sweeper.settings) | values.pop("settings", {})
        grid = dict(sweeper.get("params") or {}) | values
        sweeper.params = {key: value for key, value in grid.items() if value is not None}
        set_measures(config, values)
    return [key.lstrip("~+") for key in _single_valued_keys(values)]


def set_measures(config: DictConfig, values: Node) -> None:
    """Set those values of a scale that are below ``measures``, as claims depend on them."""
    for key, value in values.items():
        if not key.startswith("measures.") or value is None:
            continue
        if isinstance(value, str):
            value = yaml.safe_load(value)
        OmegaConf.update(config, key, value)


def _single_valued_keys(values: Node) -> list[str]:
    """Return the keys of a scale that have one value, not a list of them as in "1,2"."""
    return [key for key, value in values.items() if not (isinstance(value, str) and "," in value)]


def claim_entries(
    config: DictConfig, jobs: Sequence[Sequence[str]], earlier_record: SweepRecord, any_result: bool
) -> dict[str, Any]:
    """Return the entries of ``sweep.json`` on a paper's claims; UserError: one is not decidable.

    ``jobs``: the overrides of each run. ``earlier_record``: the record of an earlier start.
    ``any_result``: whether a run of the sweep has ended.
    """
    if not config.get("paper"):
        return {}
    if config.get("until") or config.hydra.sweeper.get("tune"):
        raise UserError(
            "paper: the settings and seeds of a paper are fixed; do not pass until or "
            "hydra.sweeper.tune"
        )
    node = to_plain(config.paper)
    scale = str(config.get("scale", "small"))
    axes = _swept_axes(config, jobs)
    runs_stay = any_result and not config.get("force")
    if runs_stay:
        # Values left out on the command line keep their existing runs.
        for key, values in axes.items():
            axes[key] = [*dict.fromkeys([*earlier_record.paper_axes.get(key, ()), *values])]
    check_claimed_metrics(read_claims(node, axes, scale), config, axes)
    name = str(config.hydra.runtime.choices.get("paper") or config.get("name") or "")
    settings = earlier_record.paper_settings
    if not runs_stay:
        settings = _current_settings_digest(name, scale)
    facts: dict[str, Any] = {
        "paper": node, "paper_name": name, "paper_axes": axes, "scale": scale,
        "machine": describe_machine(), "paper_settings": settings,
    }  # fmt: skip
    if earlier_record.claims_changed or (
        any_result and _have_claims_changed(earlier_record, node, axes, scale)
    ):
        facts["claims_changed"] = True
    return facts


def _swept_axes(config: DictConfig, jobs: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Return the values of each key that the grid varies; a scale's single values are no axes."""
    keys = dict.fromkeys([*(config.hydra.sweeper.get("params") or {}), *sorted(grid_keys(config))])
    for key in _single_valued_keys(scale_values(config)):
        keys.pop(key, None)
    return read_axes(jobs, map(str, keys), to_plain(config.measures))


def _have_claims_changed(earlier_record: SweepRecord, node: Node, axes: Axes, scale: str) -> bool:
    """Return whether claims differ from those of an earlier start, or seeds were added."""
    if not earlier_record.paper:
        return False
    earlier = decisive_keys(earlier_record.paper.get("claims") or {}, scale)
    return earlier != decisive_keys(node["claims"], scale) or earlier_record.paper_axes != axes


def _current_settings_digest(name: str, scale: str) -> str:
    """Return the digest of the settings in a paper's file; "" if there is no such file."""
    for folder in config_folders():
        file = folder / "paper" / f"{name}.yaml"
        if file.is_file():
            return settings_digest(read_yaml(file), scale)
    return ""


def describe_machine() -> str:
    """Describe the machine, without its name: "x86_64, AMD EPYC 7763, 2 cores"."""
    parts = [platform.machine()]
    file = Path("/proc/cpuinfo")
    if file.is_file():
        match = re.search(r"^model name\s*:\s*(.+)", file.read_text(errors="replace"), re.MULTILINE)
        if match:
            parts.append(" ".join(match[1].split()))
    return ", ".join([*parts, f"{cores()} cores"])
