"""How far a run's samples, and its posterior mean, are from the truth, and the truth from itself."""

import math
import time
from typing import Any

import torch
from torch import Tensor

from triptych.diffusion.draws import Stream, mix, seeded
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.tweedie import tweedie_errors
from triptych.errors import Diverged
from triptych.run.drawing import Drawing
from triptych.run.experiment import Experiment

LEVELS, POINTS = 20, 1000  # of noise and of test items, at which Tweedie's formula is measured


def measure_samples(experiment: Experiment, step: int = 0) -> dict[str, Any]:
    """What the configuration asks for in ``measures``, for ``summary.json``; empty if that is nothing.

    {"measures": {name: {"mean", "stderr", "n"}}, "measured": {"n", "repeats", "reference", "floor",
    "noise", "metrics"}}, or with ``over`` {"measures_over": {"key", "rows": [{"value", "evaluations",
    "seconds", "measures"}]}, "measured"}.
    ``stderr`` is over ``repeats`` sets of ``n`` samples each.

    Args:
        step: of the model, for the error.

    Raises:
        Diverged: a sample is not finite, so that it is at no distance from the truth.
    """
    node, reference = experiment.config["measures"], experiment.reference
    if reference is None:
        return {}
    reference.on(experiment.model.device)
    first = experiment.measured[0][1]
    trained, _ = _items(experiment, first)
    classes = None if trained is not None else _classes(experiment, first)
    generator = seeded(experiment.config["seed"], Stream.MEASURED_SAMPLES, 0, 0)
    about = {
        "n": node["n"],
        "repeats": node["repeats"],
        "reference": reference.name,
        "floor": reference.floor(),
        "noise": reference.noise(classes, trained, generator),
        "metrics": reference.about_own(),
    }
    over = node["over"] if isinstance(node["over"], str | None) else node["over"][0]
    rows = []
    for value, drawing in experiment.measured:
        what = "a sample" if over is None else f"a sample with {over}={value}"
        rows.append({"value": value} | _row(experiment, drawing, Diverged(what, step)))
    if over is None:
        return {"measures": rows[0]["measures"], "measured": about}
    return {"measures_over": {"key": over, "rows": rows}, "measured": about}


def _row(experiment: Experiment, drawing: Drawing, not_finite: Diverged) -> dict[str, Any]:
    node, reference = experiment.config["measures"], experiment.reference
    assert reference is not None
    trained, untrained = _items(experiment, drawing)
    classes = None if trained is not None else _classes(experiment, drawing)

    def drawn(repeat: int, items: Tensor | None) -> Tensor:
        seed = mix(experiment.config["seed"], Stream.MEASURED_SAMPLES, repeat)
        x = drawing.samples(node["n"] if items is None else len(items), seed, items)
        if not x.isfinite().all():
            raise not_finite
        return x

    began, figures, sizes = time.perf_counter(), [], {}
    for repeat in range(node["repeats"]):
        x = drawn(repeat, trained)
        figures.append(reference.compare(x, classes, repeat))
        if trained is not None:
            figures[-1] |= reference.prompted(x, trained)
        if untrained is not None:
            x = drawn(node["repeats"] + repeat, untrained)
            unseen = {f"{name}_held_out": share for name, share in reference.prompted(x, untrained).items()}
            figures[-1] |= unseen
            sizes = dict.fromkeys(unseen, len(untrained))
    seconds = (time.perf_counter() - began) / node["repeats"]
    sizes = dict.fromkeys(figures[0], node["n"]) | sizes
    return {
        "evaluations": drawing.sampler.evaluations,
        "seconds": round(seconds, 3),
        "measures": {name: _figure([f[name] for f in figures], n) for name, n in sizes.items()},
    }


def _classes(experiment: Experiment, drawing: Drawing) -> Tensor | None:
    """The classes (n,) that samples are asked for; None where they are asked for none."""
    condition = drawing.condition(experiment.config["measures"]["n"])
    return condition.label if condition is not None and "label" in condition.parts else None


def _items(experiment: Experiment, drawing: Drawing) -> tuple[Tensor | None, Tensor | None]:
    """Items whose captions samples are asked for: n of classes that were trained on, half as many of others.

    Over again where there are fewer; None: samples are not asked for captions, or there are no such items.
    """
    n, reference = experiment.config["measures"]["n"], experiment.reference
    prompts = None if reference is None else reference.prompts
    if prompts is None or not drawing.conditional or drawing.class_conditional:
        return None, None
    places = [kind.nonzero().squeeze(1) for kind in (~prompts.untrained, prompts.untrained)]
    sizes = n, n // 2
    trained, untrained = (
        p[torch.arange(k) % len(p)] if len(p) else None for p, k in zip(places, sizes, strict=True)
    )
    return trained, untrained


def _figure(values: list[float], n: int) -> dict[str, Any]:
    mean = sum(values) / len(values)
    spread = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
    stderr = math.sqrt(spread / len(values)) if len(values) > 1 else math.nan
    finite = {"mean": mean, "stderr": stderr}  # a metric of one's own may have no figure of a set
    return {name: x if math.isfinite(x) else None for name, x in finite.items()} | {"n": n}


def measure_posterior_mean(experiment: Experiment) -> dict[str, Any]:
    """{"tweedie": {"gamma", "excess", "stderr", "spread"}}, squares per dimension; {} without a truth.

    Test points that a conditional model is not told the labels of; excess: from the model's score to the
    oracle's mean; spread: the posterior's own variance.
    """
    model: Any = experiment.model  # of noise levels, if it has a denoiser
    data = experiment.data
    denoiser = getattr(model, "denoiser", None)
    if data.mixture is None or denoiser is None or model.of_latents or not len(data.splits["test"]):
        return {}
    truth = data.mixture.to(model.device)
    oracle = Oracle(truth, denoiser.process)
    low, high = model.schedule.gamma(torch.tensor([0.0, 1.0], device=model.device)).tolist()
    x = data.splits["test"].batch(torch.arange(min(POINTS, len(data.splits["test"])))).x.to(model.device)
    generator = seeded(experiment.config["seed"], Stream.POSTERIOR_MEAN)
    with torch.no_grad():
        gammas = torch.linspace(low, high, LEVELS, device=model.device)
        rows = tweedie_errors(denoiser, oracle, x, gammas, generator)
    return {"tweedie": {key: [getattr(row, key) for row in rows] for key in rows[0]._fields}}
