"""How far a run's samples are from the truth, beside how far the truth is from itself."""

import copy
import math
import time
from typing import Any

from torch import Tensor

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.diffusion.draws import mix
from triptych.diffusion.sampler import Sampler
from triptych.errors import UserError
from triptych.sampling.draw import draw, labels, takes_labels
from triptych.sampling.guided import guided, open_classifier
from triptych.sampling.reference import Images, Points

Figures = dict[str, dict[str, Any]]


def measure(model, data: DataModule, config: dict) -> dict[str, Any]:
    """What ``config["measures"]`` asks for, for ``summary.json``; empty if that is nothing.

    {"measures": {name: {"mean", "stderr", "n"}}, "measured": {"n", "repeats", "reference", "floor"}}, or
    with ``over`` {"measures_over": {"key", "rows": [{"value", "evaluations", "seconds", "measures"}]},
    "measured"}.
    ``stderr`` is over ``repeats`` sets of ``n`` samples each.
    """
    node = config["measures"]
    if not node["n"]:
        return {}
    reference = _reference(model, data, config)
    about = {
        "n": node["n"],
        "repeats": node["repeats"],
        "reference": reference.name,
        "floor": reference.floor(),
    }
    if node["over"] is None:
        return {"measures": _row(model, data, config, reference)["measures"], "measured": about}
    rows = [
        {"value": value, **_row(model, data, changed(config, node["over"], value), reference)}
        for value in node["values"]
    ]
    return {"measures_over": {"key": node["over"], "rows": rows}, "measured": about}


def check(model, data: DataModule, config: dict) -> None:
    """Refuse before anything is trained what could not be measured or drawn after it.

    Raises:
        UserError: guidance or a sampler that the model cannot have; an unknown key to measure over, too small
            a set, images without a classifier; FID without its network.
    """
    guided(model, data, config)
    model.check_sampler(build(config["sampler"], "sampler"))
    node = config["measures"]
    if not node["n"]:
        return
    if node["over"] is not None:
        if not node["values"]:
            raise UserError("measures.values=[]: a list, as in [1,2,4], is accepted beside measures.over")
        for value in node["values"]:
            other = changed(config, node["over"], value)
            model.check_sampler(build(other["sampler"], "sampler"))
            guided(model, data, other)
    _reference(model, data, config)


def changed(config: dict, key: str, value: Any) -> dict:
    """The configuration with ``key`` at ``value``; "evaluations" sets the sampler's steps by their cost.

    Raises:
        UserError: no such key.
    """
    config = copy.deepcopy(config)
    if key == "evaluations":
        calls = build(config["sampler"], "sampler").calls
        config["sampler"]["steps"] = max(1, int(value) // calls)
        return config
    node = config
    *parents, name = key.split(".")
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None  # type: ignore[assignment]
    if not isinstance(node, dict) or name not in node:
        raise UserError(f"measures.over={key}: no such key; evaluations, guidance.scale, ... are accepted")
    node[name] = value
    return config


def _reference(model, data: DataModule, config: dict) -> Points | Images:
    node = config["measures"]
    if len(data.shape) != 3:
        return Points(data, node["n"], config["seed"])
    if node["classifier"] is None:
        raise UserError("measures.classifier=null: images are measured by a classifier; its checkpoint is")
    classifier = open_classifier("measures.classifier", node["classifier"], config, noise=False)
    return Images(data, node["n"], classifier.to(model.device), config["seed"], node["inception"])


def _row(model, data: DataModule, config: dict, reference: Points | Images) -> dict[str, Any]:
    node = config["measures"]
    sampler: Sampler = build(config["sampler"], "sampler")
    denoiser = guided(model, data, config)
    asked: Tensor | None = labels(node["n"], data) if takes_labels(model, denoiser) else None
    began, found = time.perf_counter(), []
    for repeat in range(node["repeats"]):
        seed = mix(config["seed"], 14, repeat)
        x = draw(model, sampler, data, node["n"], seed, guided=denoiser)
        found.append(reference.compare(x, asked, repeat))
    seconds = (time.perf_counter() - began) / node["repeats"]
    return {
        "evaluations": sampler.evaluations,
        "seconds": round(seconds, 3),
        "measures": {name: _figure([f[name] for f in found], node["n"]) for name in found[0]},
    }


def _figure(values: list[float], n: int) -> dict[str, Any]:
    mean = sum(values) / len(values)
    spread = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
    stderr = math.sqrt(spread / len(values)) if len(values) > 1 else math.nan
    return {"mean": mean, "stderr": None if math.isnan(stderr) else stderr, "n": n}
