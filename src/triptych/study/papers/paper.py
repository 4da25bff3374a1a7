"""A published table and its claims: the node ``paper`` of a file in ``configs/paper``, read and checked.

A sweep of them: its scale, and what it records of the claims before its first run; without numpy or torch.
"""

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from triptych.config.compose import to_plain
from triptych.config.describe import read_yaml
from triptych.config.habits import nearest
from triptych.config.identity import cores, grid_keys, leaves
from triptych.config.keys import check_values
from triptych.config.metric import SAMPLE_METRICS
from triptych.config.schema import PaperClaim, PaperNode
from triptych.config.source import CONFIGS, choices_of, folders
from triptych.errors import UserError
from triptych.run.sweep_record import SweepRecord
from triptych.study.papers.claim import METRIC, OF_THE_BOUND, OF_THE_RUN, Axes, Claim, read_claim
from triptych.study.rounds import jobs_of

# of a claim: what changes none of its statistics
WORDS_ALONE = (
    "says", "published", "note", "scale", "kind", "table", "figure", "section", "quote",
    "otherwise", "untestable",
)  # fmt: skip
KINDS = ("identity", "exact", "trained")
WIDEST = 1.5  # times at most by which "the same" may differ: half of the smaller


def axes_of(
    jobs: Iterable[Sequence[str]], keys: Iterable[str], measures: Mapping[str, Any] | None = None
) -> dict[str, list[str]]:
    """Return values of ``keys`` in the jobs of a grid, and those at which each run measures its samples."""
    values_of: dict[str, dict[str, None]] = {key: {} for key in keys}
    for job in jobs:
        for override in job:
            key, _, value = override.lstrip("+").partition("=")
            if key in values_of:
                values_of[key][value.strip("'\"")] = None
    axes = {key: list(values) for key, values in values_of.items()}
    if measures and measures.get("over") and measures.get("n"):
        over = measures["over"]
        axes[over if isinstance(over, str) else str(over[0])] = [f"{value:g}" for value in measures["values"]]
    return axes


def decisive_keys(claims: Mapping[str, Any], scale: str = "small") -> dict[str, Any]:
    """Return what a verdict depends on, of a node's claims at a scale: all but words."""
    return {
        name: {key: value for key, value in claim.items() if key not in WORDS_ALONE}
        for name, claim in claims_at(claims, scale).items()
    }


def settings_digest(file: Mapping[str, Any], scale: str) -> str:
    """Return a digest of what a paper's file sets of its runs at a scale: all but ``paper``."""
    sweeper = (file.get("hydra") or {}).get("sweeper") or {}
    own = sweeper | {"scales": (sweeper.get("scales") or {}).get(scale)}
    rest = {key: value for key, value in file.items() if key not in ("paper", "hydra")} | {"sweeper": own}
    if scale == "small":  # to which a file of another scale's values adds nothing
        rest["defaults"] = [one for one in rest.get("defaults") or [] if not _only_scales(one)]
    return sha256(yaml.safe_dump(rest).encode()).hexdigest()[:16]


def _only_scales(default: Any) -> bool:
    """Return whether an entry of ``defaults`` names a file that sets nothing but scales."""
    with suppress(OSError):
        values = leaves(read_yaml(CONFIGS / f"{str(default).lstrip('/')}.yaml"))
        return all(key.startswith("hydra.sweeper.scales.") for key, _ in values)
    return False


def claims_at(claims: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Return a node's claims that are made at a scale."""
    return {str(name): claim for name, claim in claims.items() if claim.get("scale") in (None, scale)}


def read_claims(node: Mapping[str, Any], axes: Axes, scale: str = "small") -> list[Claim]:
    """Return the claims of a sweep's node ``paper``; UserError: a wrong value, or one not in ``axes``."""
    check_values({"paper": dict(node)})
    for key in sorted(PaperNode.__required_keys__ - node.keys()):
        raise UserError(f"paper.{key}: a value is needed")
    if not node["claims"]:
        raise UserError("paper.claims={}: must be one or more claims")
    for name, claim in node["claims"].items():
        for key in sorted(PaperClaim.__required_keys__ - claim.keys()):
            raise UserError(f"paper.claims.{name}.{key}: a value is needed")
    settings = {key: values for key, values in axes.items() if key != "seed"}
    return [read_claim(name, one, settings, scale) for name, one in claims_at(node["claims"], scale).items()]


def check_claimed_metrics(claims: Iterable[Claim], config: Mapping[str, Any], axes: Axes) -> None:
    """Raise UserError for a metric that no run of the sweep will have, as its configuration tells."""
    swept = {key.split(".")[0].split("/")[0] for key in axes}
    own = config.get("metrics") or {}
    built = {name: str(one.get("_target_")) for name, one in own.items() if one}
    users = [name for name, target in built.items() if not target.startswith("triptych.")]
    drawn = config["measures"]["n"] or {"measures", "measures.n"} & axes.keys()
    for claim in claims:
        for metric in dict.fromkeys(point.metric for point in claim.points):
            at = f"paper.claims.{claim.name}.metric={metric}"
            if metric in SAMPLE_METRICS:
                if not drawn:
                    raise UserError(f"{at}: measures.n=0 measures no samples; measures.n=1000 does")
                points = SAMPLE_METRICS[metric].of == "points"
                if points and config["measures"].get("classifier"):
                    raise UserError(f"{at}: of points; images, which measures.classifier is for, have others")
            elif metric in ("ode", "ode_bound"):
                if not (config.get("likelihood") or {"likelihood", "setting"} & swept):
                    raise UserError(f"{at}: likelihood=none has no such figure; likelihood=ode has")
            elif metric not in (*OF_THE_BOUND, *OF_THE_RUN, *own) and not {"metrics", "setting"} & swept:
                if metric in choices_of("metrics"):
                    raise UserError(f"{at}: not computed here; add it to metrics=")
                known = [*OF_THE_BOUND, *OF_THE_RUN, *SAMPLE_METRICS, *own]
                raise UserError(f"{at}: no such metric, {nearest(metric, known)}")
            elif metric in users and not drawn and not {"metrics", "setting"} & swept:
                from triptych.run.reference import own_metrics  # torch, which no other claim needs

                own_metrics(config)  # which refuses one of samples


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


def claims_of(config: DictConfig, before: SweepRecord, any_result: bool) -> dict[str, Any]:
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
    axes = axes_of(jobs, map(str, keys), plain["measures"])
    runs_stay = any_result and not config.get("force")
    if runs_stay:
        # Runs of values that are not typed again are still there.
        for key, values in axes.items():
            axes[key] = [*dict.fromkeys([*before.paper_axes.get(key, ()), *values])]
    check_claimed_metrics(read_claims(node, axes, scale), plain, axes)
    check_fairness(claims_at(node["claims"], scale))
    changed = before.claims_changed
    if any_result and before.paper:
        began = decisive_keys(before.paper.get("claims") or {}, scale)
        changed |= began != decisive_keys(node["claims"], scale)
        changed |= before.paper_axes != axes  # seeds that are added once something is known
    facts: dict[str, Any] = {"paper": node, "paper_name": name, "paper_axes": axes}
    facts |= {"scale": scale, "machine": machine()}
    for file in (folder / "paper" / f"{name}.yaml" for folder in folders()):
        if file.is_file():
            now = settings_digest(read_yaml(file), scale)
            facts["paper_settings"] = before.paper_settings if runs_stay else now
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
    info = ""
    with suppress(OSError):
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^model name\s*:\s*(.+)", info, re.MULTILINE)
    model = " ".join(match[1].split()) if match else ""
    return ", ".join(filter(None, (platform.machine(), model, f"{cores()} cores")))
