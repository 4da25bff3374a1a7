"""A sweep of a paper's claims: its scale, and what it records of the claims before its first run."""

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from triptych.config.compose import to_plain
from triptych.config.describe import read_yaml
from triptych.config.identity import cores, grid_keys
from triptych.config.source import folders
from triptych.errors import UserError
from triptych.study.papers import paper
from triptych.study.papers.claim import METRIC
from triptych.study.rounds import jobs_of

KINDS = ("identity", "exact", "trained")
WIDEST = 1.5  # times at most by which "the same" may differ: half of the smaller


def check_scale(config: DictConfig) -> None:
    """Raise UserError for a scale that the chosen paper does not have."""
    scale, name = config.get("scale", "small"), config.hydra.runtime.choices.get("paper")
    if scale == "small":
        return
    if not config.get("paper"):
        raise UserError(f"scale={scale}: for a sweep of a paper's claims, with -m paper=NAME")
    values = config.hydra.sweeper.get("scales", {}).get(scale) or "has no such scale; use scale=small"
    if isinstance(values, str):  # the reason why there is none
        raise UserError(f"scale={scale}: paper={name} {values}")


def set_scale(config: DictConfig) -> list[str]:
    """Set the sweep's values to its scale's; return the keys that all of its runs have in common by that.

    Each stands in the place of the grid's value, or beside it; null takes a key out of the grid, and "~key"
    with its value out of the configuration.
    """
    values = _of_scale(config)
    if not values:
        return []
    with open_dict(config):
        config.hydra.sweeper.settings = dict(config.hydra.sweeper.settings) | values.pop("settings", {})
    # one by one, as what is read by key is resolved where it stands
    grid = dict(config.hydra.sweeper.get("params") or {}) | values
    with open_dict(config):
        config.hydra.sweeper.params = {key: value for key, value in grid.items() if value is not None}
        set_measures(config, values)
    return [key.lstrip("~+") for key, value in values.items() if not _several(value)]


def set_measures(config: DictConfig, values: Mapping[str, Any]) -> None:
    """Set what of a scale's values the claims depend on."""
    for key, value in values.items():
        if key.startswith("measures.") and value is not None:
            OmegaConf.update(config, key, yaml.safe_load(value) if isinstance(value, str) else value)


def _of_scale(config: DictConfig) -> dict[str, Any]:
    """Return {key: value} of the chosen scale; {} for the small one."""
    scale = config.get("scale", "small")
    if scale == "small":
        return {}
    values: Any = OmegaConf.to_container(config.hydra.sweeper.scales[scale], resolve=True)
    return {str(key): value for key, value in values.items()}


def _several(value: Any) -> bool:
    return isinstance(value, str) and "," in value


def claims_of(config: DictConfig, before: dict[str, Any], any_result: bool) -> dict[str, Any]:
    """Return the claims for ``sweep.json``, {} if no paper's; UserError: one that this sweep cannot decide.

    ``before``: its content at an earlier start; ``any_result``: whether a run of it has ended.
    """
    if not config.get("paper"):
        return {}
    sweeper = config.hydra.sweeper
    if sweeper.get("tune") or config.get("until"):
        key = "until=decided" if config.get("until") else "hydra.sweeper.tune"
        why = "whose settings and seeds are fixed before the run"
        raise UserError(f"{key}: not with a paper's claims, {why}")
    node = to_plain(config.paper)
    name = str(config.hydra.runtime.choices.get("paper") or config.get("name") or "")
    plain: Any = {
        key: to_plain(config[key]) if OmegaConf.is_config(config[key]) else config[key]
        for key in ("measures", "likelihood", "metrics")
        if key in config
    }
    scale = str(config.get("scale", "small"))
    jobs = jobs_of(config)
    keys = dict.fromkeys([*(sweeper.get("params") or {}), *sorted(grid_keys(config))])
    for key, value in _of_scale(config).items():
        if not _several(value):  # all runs have it: no axis
            keys.pop(key, None)
    axes = paper.axes_of(jobs, map(str, keys), plain["measures"])
    paper.check_claimed_metrics(paper.read_claims(node, axes, scale), plain, axes)
    check_fairness(paper.claims_at(node["claims"], scale))
    earlier = before.get("paper")
    changed = bool(before.get("claims_changed"))
    if any_result and isinstance(earlier, dict):
        began = paper.decisive_keys(earlier.get("claims") or {}, scale)
        changed |= began != paper.decisive_keys(node["claims"], scale)
        changed |= before.get("paper_axes") != axes  # seeds that are added once something is known
    facts: dict[str, Any] = {"paper": node, "paper_name": name, "paper_axes": axes}
    facts |= {"scale": scale, "machine": machine()}
    for file in (folder / "paper" / f"{name}.yaml" for folder in folders()):
        if file.is_file():  # what ended runs were made of stays
            now = paper.settings_digest(read_yaml(file), scale)
            facts["paper_settings"] = before.get("paper_settings") if any_result else now
    return facts | ({"claims_changed": True} if changed else {})


def check_fairness(claims: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a claim without origin or kind, a finding that nothing could contradict, a margin too wide."""
    for name, node in claims.items():
        path = f"paper.claims.{name}"
        if "kind" not in node:
            raise UserError(f"{path}.kind: a value is needed; one of {', '.join(KINDS)}")
        if not {"table", "figure", "section"} & set(node):
            raise UserError(f"{path}: no source; add table, figure or section, and a quote")
        identity, turned = node["kind"] == "identity", "otherwise" in node
        if identity and turned:
            problem = "otherwise= contradicts it; an identity cannot come out the other way"
            raise UserError(f"{path}.kind=identity: {problem}")
        if not identity and not turned:
            problem = "otherwise is needed: under what the claim would come out the other way"
            raise UserError(f"{path}.kind={node['kind']}: {problem}; a claim without it is an identity")
        for margin, effect in (("within", "by"), ("within_factor", "by_factor")) if "same" in node else ():
            wide = node.get(margin, 0)
            if margin == "within_factor" and wide > WIDEST:
                problem = "wider than half of the smaller"
                raise UserError(f"{path}.{margin}={wide:g}: {problem}; use at most {WIDEST}")
            for other in claims.values():
                least = other.get(effect)
                if "order" in other and least and least < wide and _metric(other) == _metric(node):
                    of = f"the effect {effect}={least:g} that another claim calls an improvement"
                    raise UserError(f"{path}.{margin}={wide:g}: wider than {of}; use a smaller margin")


def _metric(node: Mapping[str, Any]) -> str:
    return METRIC if node.get("compare") == METRIC else str(node.get("metric", "bound"))


def machine() -> str:
    """Describe the machine of a table of results, without its name: "x86_64, AMD EPYC 7763, 2 cores"."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        info = ""
    match = re.search(r"^model name\s*:\s*(.+)", info, re.MULTILINE)
    model = " ".join(match[1].split()) if match else ""
    return ", ".join(filter(None, (platform.machine(), model, f"{cores()} cores")))
