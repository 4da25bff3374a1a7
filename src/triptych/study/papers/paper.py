"""A published table and its claims: the node ``paper`` of a file in ``configs/paper``, read and checked.

Read without numpy or torch, before a run starts.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

import yaml

from triptych.config.describe import read_yaml
from triptych.config.habits import nearest
from triptych.config.identity import leaves
from triptych.config.keys import check_values
from triptych.config.metric import SAMPLE_METRICS
from triptych.config.schema import PaperClaim, PaperNode
from triptych.config.source import CONFIGS, choices_of
from triptych.errors import UserError
from triptych.study.papers.claim import OF_THE_BOUND, OF_THE_RUN, Axes, Claim, read_claim

# of a claim: what changes none of its statistics
WORDS_ALONE = (
    "says", "published", "note", "scale", "kind", "table", "figure", "section", "quote",
    "otherwise", "untestable",
)  # fmt: skip


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
