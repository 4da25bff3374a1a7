"""Compute metrics of samples, their noise floor, and the error of the model's posterior mean."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor, nn

from triptych.callbacks.metrics import better_direction
from triptych.diffusion.condition import AUGMENTATION
from triptych.diffusion.draws import Stream, seeded_generator
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.tweedie import tweedie_errors
from triptych.errors import Diverged
from triptych.models.condition_bits import undropped_parts
from triptych.models.metric import diffuses_data
from triptych.records import Config, Entries
from triptych.run.chunks import Chunks, Features, chunk_seed, open_chunk_folder, weights_digest
from triptych.run.directory import RunDirectory
from triptych.run.drawing import Drawing, spread_indices
from triptych.run.experiment import Experiment
from triptych.run.reference import SetConditions

LEVELS, POINTS = 20, 1000  # number of noise levels and of items for the posterior mean's error


@dataclass(frozen=True)
class SampleSet:
    """The features of one set of samples, and the conditions under which they were drawn."""

    features: Features
    conditions: SetConditions


@dataclass(frozen=True)
class MeasuredValue:
    """The sets of samples that were drawn at one value of the key ``measures.over``.

    ``value`` is None if no key is varied. ``sets`` has one set per repeat. ``unseen_captions`` has
    as many sets for captions of classes that were excluded from training, or none.
    """

    value: Any
    drawing: Drawing
    sets: Sequence[SampleSet]
    unseen_captions: Sequence[SampleSet]


def draw_sets(
    experiment: Experiment, run: RunDirectory, strategy: Strategy, step: int = 0
) -> list[MeasuredValue]:
    """Draw this process's chunks of the samples for metrics; return [] if metrics are off.

    Chunks on disk are reused if weights, data, code and packages are the same. Raises Diverged in
    all ranks if a sample is not finite; ``step`` is the training step that the error names.
    """
    if experiment.reference is None:
        return []
    folder = open_chunk_folder(run.path, strategy.broadcast(_cache_key(experiment, run)))
    reference, device = experiment.reference, strategy.root_device
    chunks = Chunks(folder, experiment.data.shape, reference.compute_features, device)
    experiment.model.to(device)  # Lightning has moved the model to the CPU.
    reference.fill(chunks, device)
    measured = []
    for row, (value, drawing) in enumerate(experiment.measured):
        drawing = drawing.calibrated()
        measured.append(_draw_samples_at_value(experiment, chunks, row, value, drawing))
        if not strategy.reduce_boolean_decision(chunks.finite):
            raise Diverged(f"a sample{_value_suffix(experiment.config, value)}", step)
    experiment.model.cpu()
    return measured


def _draw_samples_at_value(
    experiment: Experiment, chunks: Chunks, value_index: int, value: Any, drawing: Drawing
) -> MeasuredValue:
    """Draw all sets of samples with the ``Drawing`` for one value of ``measures.over``."""
    repeats, seed = experiment.config["measures"]["repeats"], experiment.config["seed"]
    untrained_items = choose_unseen_captions(experiment, drawing)
    sets, untrained = [], []
    for repeat in range(repeats):
        conditions = choose_conditions(experiment, drawing, repeat)
        sets.append(_draw_sample_set(chunks, drawing, conditions, seed, value_index, repeat))
        if untrained_items is not None:
            conditions = SetConditions(untrained_items, captioned=True)
            untrained.append(
                _draw_sample_set(chunks, drawing, conditions, seed, value_index, repeats + repeat)
            )
    return MeasuredValue(value, drawing, sets, untrained)


def _draw_sample_set(
    chunks: Chunks,
    drawing: Drawing,
    conditions: SetConditions,
    seed: int,
    value_index: int,
    set_index: int,
) -> SampleSet:
    """Draw this process's chunks of one set of samples, and return the set."""
    draw = partial(_draw_chunk, drawing, conditions, seed, set_index)
    features = chunks.fill(f"samples_{value_index}_{set_index}", len(conditions.items), draw)
    return SampleSet(features, conditions)


def _draw_chunk(
    drawing: Drawing, conditions: SetConditions, seed: int, set_index: int, rows: Tensor, chunk: int
) -> Tensor:
    """Draw the samples with indices ``rows`` of a set, with the chunk's own seed."""
    mixed = chunk_seed(chunk, seed, Stream.MEASURED_SAMPLES, set_index)
    labels = None if conditions.labels is None else conditions.labels[rows]
    return drawing.samples(len(rows), mixed, conditions.items[rows], labels)


def _cache_key(experiment: Experiment, run: RunDirectory) -> str:
    """Return a digest of all that determines samples and features, except the configuration.

    These are the weights of all networks involved, the code, the packages and the data.
    """
    drawings = [drawing for _, drawing in experiment.measured]
    networks = [network for drawing in drawings for network in _sampling_networks(drawing)]
    provenance = run.provenance
    code = json.dumps([provenance.code, provenance.record.get("data")])
    return weights_digest(
        [*dict.fromkeys(networks), *experiment.reference.feature_networks()], code
    )


def _sampling_networks(drawing: Drawing) -> Iterator[nn.Module]:
    """Yield the networks that draw samples, including those of earlier stages."""
    yield drawing.model
    if drawing.denoiser is not None:
        yield drawing.denoiser
    for stage in drawing.stages.values():
        yield from _sampling_networks(stage)


def measure_drawn_sets(experiment: Experiment, measured: Sequence[MeasuredValue]) -> Entries:
    """Compute the metrics of all drawn sets of samples, as entries of ``summary.json``.

    The entries are {"measures": {name: {"mean", "stderr", "n"}}, "measured": {"n", "repeats",
    "reference", "floor", "noise", "metrics", "files"}}. If ``measures.over`` is set, "measures" is
    replaced by "measures_over": {"key", "rows": [{"value", "evaluations", "measures"}]}. ``mean``
    and ``stderr`` are over ``repeats`` sets of ``n`` samples each.
    """
    node, reference = experiment.config["measures"], experiment.reference
    conditions = measured[0].sets[0].conditions
    about = {
        "n": node["n"],
        "repeats": node["repeats"],
        "reference": reference.name,
        "floor": reference.noise_floor(conditions.labels is not None),
        "noise": reference.noise_metrics(conditions),
        "metrics": {
            name: {"title": m.title or name, "unit": m.unit, "better": better_direction(m)}
            for name, m in reference.user_metrics.items()
        },
    }
    if reference.files:
        about["files"] = reference.files
    rows = [{"value": drawn.value, **_measure_value(experiment, drawn)} for drawn in measured]
    key = _swept_key(experiment.config)
    if key is None:
        return {"measures": rows[0]["measures"], "measured": about}
    return {"measures_over": {"key": key, "rows": rows}, "measured": about}


def _measure_value(experiment: Experiment, measured: MeasuredValue) -> Entries:
    """Compute the metrics of the samples drawn at one value of ``measures.over``.

    Return them with the denoiser's calls per sample.
    """
    reference = experiment.reference
    figures = [
        reference.measure(sample_set.features, sample_set.conditions, repeat)
        for repeat, sample_set in enumerate(measured.sets)
    ]
    measures = _average_over_sets(figures, experiment.config["measures"]["n"])
    if measured.unseen_captions:
        shares = [
            reference.caption_matches(unseen.features, unseen.conditions.items)
            for unseen in measured.unseen_captions
        ]
        averages = _average_over_sets(shares, len(measured.unseen_captions[0].conditions.items))
        measures |= {f"{name}_held_out": average for name, average in averages.items()}
    calls = measured.drawing.sampler.count_denoiser_calls(measured.drawing.model.schedule)
    return {"evaluations": calls, "measures": measures}


def _swept_key(config: Config) -> str | None:
    """Return the key that ``measures.over`` names, or the first of several; None without one."""
    key = config["measures"]["over"]
    return key[0] if isinstance(key, list) else key


def _value_suffix(config: Config, value: Any) -> str:
    """Return " with KEY=VALUE" for a value of ``measures.over``; "" without one."""
    key = _swept_key(config)
    if key is None:
        return ""
    return f" with {key}={value}"


def choose_conditions(experiment: Experiment, drawing: Drawing, repeat: int) -> SetConditions:
    """Choose the conditions of a set of n samples.

    If labels are the only condition, the classes are those of a set of true items. An exact sampler
    then draws another such set, and its distance to the data is the noise floor. If the data have
    captions and a classifier for their attributes, the conditions are held-out captions of classes
    that were trained on. Otherwise they are those of held-out items, with their classes if any.
    """
    n, reference = experiment.config["measures"]["n"], experiment.reference
    items = drawing.held_out_indices(n)
    if not drawing.conditional:
        return SetConditions(items)
    if drawing.class_conditional:
        labels, rows = reference.held_out_set(repeat)[1], torch.arange(n)
        return SetConditions(items, _cyclic_labels(labels, rows))
    if reference.prompts is not None:
        trained = _choose_suitable(~reference.prompts.is_left_out_of_training, n)
        if trained is not None:
            return SetConditions(trained, captioned=True)
    labels = drawing.data.splits[drawing.data.condition_split].labels
    return SetConditions(items, _cyclic_labels(labels, items))


def choose_unseen_captions(experiment: Experiment, drawing: Drawing) -> Tensor | None:
    """Return n / 2 items (indices) with captions of classes that were excluded from training.

    Return None if there are none, or if samples are not drawn from captions.
    """
    prompts = experiment.reference.prompts
    if prompts is None or drawing.class_conditional or not drawing.conditional:
        return None
    return _choose_suitable(
        prompts.is_left_out_of_training, experiment.config["measures"]["n"] // 2
    )


def _choose_suitable(suitable: Tensor, n: int) -> Tensor | None:
    """Return the indices of n items where ``suitable`` (size,) is true; None if none is suitable.

    If there are fewer than n such items, they are repeated.
    """
    items = suitable.nonzero().squeeze(1)
    if not len(items):
        return None
    return items[spread_indices(n, len(items))]


def _cyclic_labels(labels: Tensor | None, rows: Tensor) -> Tensor | None:
    """Return ``labels[rows]``, where rows beyond the end start again; None without labels."""
    if labels is None:
        return None
    return labels[rows % len(labels)]


def _average_over_sets(figures: Sequence[dict[str, float]], n: int) -> Entries:
    """Return {metric: {"mean", "stderr", "n"}} over several sets of n samples each.

    ``figures`` has the metrics of each set.
    """
    return {name: _mean_over_sets([of_set[name] for of_set in figures], n) for name in figures[0]}


def _mean_over_sets(values: list[float], n: int) -> Entries:
    """Return {"mean", "stderr", "n"} of a metric over sets, with None for non-finite numbers."""
    mean = sum(values) / len(values)
    spread = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
    stderr = math.sqrt(spread / len(values)) if len(values) > 1 else math.nan
    return {"mean": _finite_or_none(mean), "stderr": _finite_or_none(stderr), "n": n}


def _finite_or_none(x: float) -> float | None:
    """Return x, or None if it is not finite."""
    return x if math.isfinite(x) else None


def measure_posterior_mean(experiment: Experiment) -> Entries:
    """Measure the squared error per dimension of the model's posterior mean, E[x | z].

    It is averaged over items of the ``shown`` split, without conditions. Return {"tweedie":
    {"gamma", "excess", "stderr", "spread"}}, each a list over noise levels. "excess" is the squared
    distance between the model's posterior mean, by Tweedie's formula from its score, and the exact
    one; "spread" is the variance of the exact posterior.

    Return {} if the data's density is not known, or if the model has no unconditional prediction (a
    condition was never dropped in training).
    """
    model, data = experiment.model, experiment.data
    split = data.splits[data.shown]
    denoiser = _unconditional_denoiser(model)
    if data.mixture is None or denoiser is None or not len(split):
        return {}
    assert model.schedule is not None  # a model with a denoiser has noise levels
    oracle = Oracle(data.mixture, denoiser.process)
    low, high = model.schedule.gamma(torch.tensor([0.0, 1.0], device=model.device)).tolist()
    x = split.batch(torch.arange(min(POINTS, len(split)))).x.to(model.device)
    generator = seeded_generator(experiment.config["seed"], Stream.POSTERIOR_MEAN)
    with torch.no_grad():
        gammas = torch.linspace(low, high, LEVELS, device=model.device)
        return {"tweedie": tweedie_errors(denoiser, oracle, x, gammas, generator)}


def _unconditional_denoiser(model: Any) -> Any:
    """Return the model's denoiser if it can predict data without conditions; else None."""
    if not diffuses_data(model):
        return None
    parts = {*model.denoiser.conditions} - {AUGMENTATION}
    if undropped_parts(model.label_dropout, parts):
        return None
    return model.denoiser
