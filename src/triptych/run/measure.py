"""Measure the distance of samples, and of the posterior mean, to the truth, with a noise floor."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor, nn

from triptych.callbacks.metrics import BETTER
from triptych.diffusion.condition import AUGMENTATION
from triptych.diffusion.draws import Stream, seeded
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.tweedie import tweedie_errors
from triptych.errors import Diverged
from triptych.models.base import BoundModel
from triptych.models.condition_bits import never_dropped
from triptych.run.chunks import Chunks, Features, chunk_seed, folder_of_chunks, weights_digest
from triptych.run.directory import RunDirectory, log_line
from triptych.run.drawing import Drawing, choose
from triptych.run.experiment import Experiment
from triptych.run.reference import SetConditions

LEVELS, POINTS = 20, 1000  # noise levels and items at which Tweedie's formula is measured


@dataclass(frozen=True)
class SampleSet:
    """Features of one set of samples, and their conditions."""

    features: Features
    conditions: SetConditions


@dataclass(frozen=True)
class MeasuredValue:
    """The sets drawn at one ``value`` of ``measures.over``; it is None if nothing is varied.

    ``sets``: one for each repeat. ``untrained``: as many sets for captions of classes that were
    left
    out of training, or none.
    """

    value: Any
    drawing: Drawing
    sets: Sequence[SampleSet]
    untrained: Sequence[SampleSet]


def draw_sets(
    experiment: Experiment, run: RunDirectory, strategy: Strategy, step: int = 0
) -> list[MeasuredValue]:
    """Draw the samples that ``measures`` needs; each process draws its chunks.

    [] if nothing is measured. Chunks of the same weights, data, code and packages are reused.
    Diverged, in all processes: a sample of the model of ``step`` is not finite.
    """
    if experiment.reference is None:
        return []
    folder = folder_of_chunks(run.path, strategy.broadcast(_key(experiment, run)))
    chunks = Chunks(folder, experiment.data.shape, experiment.reference.read)
    experiment.model.to(strategy.root_device)  # Lightning has moved it to the CPU
    experiment.reference.fill(chunks, strategy.root_device)
    measured = []
    for row, (value, drawing) in enumerate(experiment.measured):
        measured.append(_draw_at(experiment, chunks, row, value, drawing.calibrated()))
        if not strategy.reduce_boolean_decision(chunks.finite):
            raise Diverged(f"a sample{_with_value(experiment.config, value)}", step)
    experiment.model.cpu()
    return measured


def _draw_at(experiment: Experiment, chunks: Chunks, row: int, value: Any, drawing: Drawing) -> MeasuredValue:
    repeats, seed = experiment.config["measures"]["repeats"], experiment.config["seed"]
    untrained_items = choose_untrained(experiment, drawing)
    sets, untrained = [], []
    for repeat in range(repeats):
        conditions = choose_conditions(experiment, drawing, repeat)
        sets.append(_draw_set(chunks, drawing, conditions, seed, row, repeat))
        if untrained_items is not None:
            conditions = SetConditions(untrained_items, captioned=True)
            untrained.append(_draw_set(chunks, drawing, conditions, seed, row, repeats + repeat))
    return MeasuredValue(value, drawing, sets, untrained)


def _draw_set(
    chunks: Chunks, drawing: Drawing, conditions: SetConditions, seed: int, row: int, number: int
) -> SampleSet:
    draw = partial(_draw_chunk, drawing, conditions, seed, number)
    features = chunks.fill(f"samples_{row}_{number}", len(conditions.items), draw)
    return SampleSet(features, conditions)


def _draw_chunk(
    drawing: Drawing, conditions: SetConditions, seed: int, number: int, rows: Tensor, chunk: int
) -> Tensor:
    mixed = chunk_seed(chunk, seed, Stream.MEASURED_SAMPLES, number)
    labels = None if conditions.labels is None else conditions.labels[rows]
    return drawing.samples(len(rows), mixed, conditions.items[rows], labels)


def _key(experiment: Experiment, run: RunDirectory) -> str:
    """Return a digest of what samples and features depend on beside the run's configuration."""
    drawings = [drawing for _, drawing in experiment.measured]
    networks = [network for drawing in drawings for network in _networks(drawing)]
    last = run.provenance.last
    code = json.dumps([last.sources, last.versions, last.data])
    return weights_digest([*dict.fromkeys(networks), *experiment.reference.judges()], code)


def _networks(drawing: Drawing) -> Iterator[nn.Module]:
    yield drawing.model
    if drawing.denoiser is not None:
        yield drawing.denoiser
    for stage in drawing.stages.values():
        yield from _networks(stage)


def measure_samples(
    experiment: Experiment, measured: Sequence[MeasuredValue], run: RunDirectory
) -> dict[str, Any]:
    """Measure the sets that were drawn, for ``summary.json``.

    {"measures": {name: {"mean", "stderr", "n"}}, "measured": {"n", "repeats", "reference", "floor",
    "noise", "metrics", "files"}}, or with ``over`` {"measures_over": {"key", "rows": [{"value",
    "evaluations", "measures"}]}, "measured"}. ``stderr`` is over ``repeats`` sets of ``n`` samples
    each.
    """
    node, reference = experiment.config["measures"], experiment.reference
    conditions = measured[0].sets[0].conditions
    about = {
        "n": node["n"],
        "repeats": node["repeats"],
        "reference": reference.name,
        "floor": reference.floor(conditions.labels is not None),
        "noise": reference.noise(conditions),
        "metrics": {
            name: {"title": m.title or name, "unit": m.unit, "better": BETTER[m.higher_is_better]}
            for name, m in reference.own.items()
        },
    }
    if reference.files:
        about["files"] = reference.files
    rows = [{"value": drawn.value, **_measure_value(experiment, drawn, run)} for drawn in measured]
    key = _varied_key(experiment.config)
    if key is None:
        return {"measures": rows[0]["measures"], "measured": about}
    return {"measures_over": {"key": key, "rows": rows}, "measured": about}


def _measure_value(experiment: Experiment, drawn: MeasuredValue, run: RunDirectory) -> dict[str, Any]:
    """Return the measures of samples at one value, and the denoiser's calls per sample."""
    reference = experiment.reference
    figures = [
        reference.measure(sample_set.features, sample_set.conditions, repeat)
        for repeat, sample_set in enumerate(drawn.sets)
    ]
    for name in reference.own:
        finite = sum(math.isfinite(of_set[name]) for of_set in figures)
        if finite < len(figures):
            place = _with_value(experiment.config, drawn.value)
            log_line(run, f"metric {name}: {finite} of {len(figures)} sets of samples{place} have a value")
    measures = _average(figures, experiment.config["measures"]["n"])
    if drawn.untrained:
        shares = [reference.prompted(unseen.features, unseen.conditions.items) for unseen in drawn.untrained]
        averages = _average(shares, len(drawn.untrained[0].conditions.items))
        measures |= {f"{name}_held_out": average for name, average in averages.items()}
    calls = drawn.drawing.sampler.calls_under(drawn.drawing.model.schedule)
    return {"evaluations": calls, "measures": measures}


def _varied_key(config: dict[str, Any]) -> str | None:
    """Return the key whose values are measured, the first of several; None if nothing is varied."""
    key = config["measures"]["over"]
    return key[0] if isinstance(key, list) else key


def _with_value(config: dict[str, Any], value: Any) -> str:
    """Return " with KEY=VALUE" for a value of ``measures.over``; "" without one."""
    key = _varied_key(config)
    if key is None:
        return ""
    return f" with {key}={value}"


def choose_conditions(experiment: Experiment, drawing: Drawing, repeat: int) -> SetConditions:
    """Choose the conditions of n samples.

    With captions and a classifier that knows their classes: captions of classes that were trained
    on. If the model reads labels alone: classes as in a true set, so that an exact sampler draws
    another such set and is as far from the data as the floor. Otherwise: held-out items, with their
    classes if they have any.
    """
    n, reference = experiment.config["measures"]["n"], experiment.reference
    items = drawing.held_out(n)
    if not drawing.conditional:
        return SetConditions(items)
    if drawing.class_conditional:
        labels, rows = reference.true_set(repeat)[1], torch.arange(n)
        return SetConditions(items, _in_turn(labels, rows))
    if reference.prompts is not None:
        trained = _some(~reference.prompts.untrained, n)
        if trained is not None:
            return SetConditions(trained, captioned=True)
    labels = drawing.data.splits[drawing.data.condition_split].labels
    return SetConditions(items, _in_turn(labels, items))


def choose_untrained(experiment: Experiment, drawing: Drawing) -> Tensor | None:
    """Choose n / 2 items whose captions are of classes left out of training; None without any."""
    prompts = experiment.reference.prompts
    if prompts is None or drawing.class_conditional or not drawing.conditional:
        return None
    return _some(prompts.untrained, experiment.config["measures"]["n"] // 2)


def _some(suitable: Tensor, n: int) -> Tensor | None:
    """Return n of the items where ``suitable`` (size,) is true, or None; too few are repeated."""
    items = suitable.nonzero().squeeze(1)
    if not len(items):
        return None
    return items[choose(n, len(items))]


def _in_turn(labels: Tensor | None, rows: Tensor) -> Tensor | None:
    """Return the labels of ``rows``; rows beyond the last label start again at the first."""
    if labels is None:
        return None
    return labels[rows % len(labels)]


def _average(figures: Sequence[dict[str, float]], n: int) -> dict[str, Any]:
    """Return {name: figure}, averaged over several sets of n samples each."""
    return {name: _figure([of_set[name] for of_set in figures], n) for name in figures[0]}


def _figure(values: list[float], n: int) -> dict[str, Any]:
    """Return a figure's mean over sets and its standard error; None if it is not finite."""
    mean = sum(values) / len(values)
    spread = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
    stderr = math.sqrt(spread / len(values)) if len(values) > 1 else math.nan
    return {"mean": _finite(mean), "stderr": _finite(stderr), "n": n}


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def measure_posterior_mean(experiment: Experiment) -> dict[str, Any]:
    """Measure the error of the model's posterior mean: squares per dimension, or {}.

    {"tweedie": {"gamma", "excess", "stderr", "spread"}}. ``excess``: from the model's score to the
    oracle's mean; ``spread``: the posterior's own variance. {} without a known truth, or if
    training
    never dropped the condition, because points of the ``shown`` split have none here.
    """
    model, data = experiment.model, experiment.data
    split = data.splits[data.shown]
    denoiser = _unconditional_denoiser(model)
    if data.mixture is None or denoiser is None or not len(split):
        return {}
    assert model.schedule is not None  # a model with a denoiser has noise levels
    oracle = Oracle(data.mixture.to(model.device), denoiser.process)
    low, high = model.schedule.gamma(torch.tensor([0.0, 1.0], device=model.device)).tolist()
    x = split.batch(torch.arange(min(POINTS, len(split)))).x.to(model.device)
    generator = seeded(experiment.config["seed"], Stream.POSTERIOR_MEAN)
    with torch.no_grad():
        gammas = torch.linspace(low, high, LEVELS, device=model.device)
        return {"tweedie": tweedie_errors(denoiser, oracle, x, gammas, generator)}


def _unconditional_denoiser(model: BoundModel) -> Any:
    """Return the data's denoiser if it was also trained without conditions, or None."""
    if model.denoiser is None or model.of_latents:
        return None
    parts = {*model.denoiser.conditions} - {AUGMENTATION}
    if never_dropped(model.label_dropout, parts):
        return None
    return model.denoiser
