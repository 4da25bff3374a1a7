"""The figures of one comparison, each with a title and one sentence on how to read it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from triptych.run.parsing import first_line
from triptych.run.read import Run
from triptych.study import (
    curves,
    draw_measures,
    factorial,
    figures,
    hierarchy,
    measures,
    own_panels,
    posterior_mean,
)
from triptych.study.compare import Comparison
from triptych.study.own_panels import Draw as OwnDraw
from triptych.study.run_details import png
from triptych.study.style import colour, narrow, styled, to_png, to_svg
from triptych.study.tuning import Tuning
from triptych.study.tuning import tuning_figure as draw_tuning

Draw = Callable[[Comparison, Mapping[str, str]], Figure | None]
LARGEST_IMAGE = 4 * 2**20  # bytes of one sample grid: more would make the page too heavy to mail


@dataclass(frozen=True)
class Panel:
    """SVG texts shown side by side under one title."""

    title: str
    how: str
    svgs: tuple[str, ...]


@dataclass(frozen=True)
class SamplePicture:
    """A sample grid as a data URI, with the caption that names its cell and seed."""

    label: str
    caption: str
    uri: str


HEADLINE = (
    "Each dot is one seed; the upright bar is their mean and the band its 95% interval, cut where the frame "
    "ends. Further left is better."
)

MEASURED = (
    "The dashed line is the noise floor, the same measure between true sets, and the grey band its range: "
    "nothing can be told apart below it. Upright lines span the seeds; dots are seeds."
)

LADDER = (
    "One question, asked with ever finer latents. A VAE has one learned latent; a hierarchical VAE (hvae) "
    "has several, each encoder and decoder learned; a variational diffusion model (vdm) has T + 1 latents "
    "of the data's own size, a fixed linear Gaussian encoder, and one network shared by all steps; "
    "latent_diffusion is a VAE whose prior is such a model. So "
    "parameters that the VAEs spend on encoders and on a decoder a level go into one denoiser, and a term "
    "of the bound can be drawn at random instead of summing all. Discs are the test bound, rings the "
    "training bound, with their standard errors over seeds, bars the importance-weighted bound of the VAEs, "
    "a number at the top a bound beyond the frame; where a bar lies far below its disc, the encoder is what "
    "costs bits. More steps lower a "
    "diffusion model's bound towards its continuous limit; if the last rungs do not differ, the limit is "
    "reached. Networks are alike in size, not in cost of a step."
)

PANELS: tuple[tuple[str, str, tuple[Draw, ...]], ...] = (
    ("From one latent to a continuum", LADDER, (hierarchy.ladder,)),
    (
        "What each latent costs",
        "One term of the bound for each learned latent, from next to the data to the top. Only the top one "
        "is a KL divergence: the ratio log q(z | below) - log p(z | above) has random neighbours on both "
        "sides, and its mean may be negative; the sum is what counts.",
        (hierarchy.level_terms,),
    ),
    (
        "The bound by number of steps",
        "Both axes are logarithmic. A chain of few steps pays for each step's Gaussian being of the wrong "
        "width; in the limit of many, no choice of variance matters.",
        (hierarchy.bound_by_steps,),
    ),
    (
        "Noise schedules and the noise of their estimates",
        "The schedules, named at half time, and the variance of one draw of the diffusion term. "
        "Between the same endpoints all have the same bound in expectation: the shape decides only how noisy "
        "an estimate of it training sees.",
        (hierarchy.schedules, hierarchy.estimator_variance),
    ),
    (
        "Difference to the best, seed by seed",
        "The dot is the mean of the differences within each seed and the line its 95% interval. A "
        "filled dot is "
        "a difference that the corrected test claims; a hollow one is no claim, even where its "
        "interval excludes "
        "zero. A grey band holds what is called the same. Lines are cut where the frame ends.",
        (figures.forest,),
    ),
    (
        "Error by noise level",
        "Left, how wrong the network's idea of the noise is at each noise level; right, the same as a "
        "multiple of the best setting's: above 1, more bits are paid there. Bands are standard errors over "
        "seeds, on the right of the multiple within a seed.",
        (curves.noise_levels, curves.ratio_to_best),
    ),
    (
        "Tweedie: posterior mean against the truth",
        "How far the mean that follows from the model's score is from the true posterior mean, at each noise "
        "level; dashed, the posterior's own variance, which no model removes.",
        (posterior_mean.posterior_mean_error,),
    ),
    (
        "Validation bound during training",
        "Left against steps, right against seconds of training: equal steps are not equal cost. Thin "
        "lines are "
        "seeds and the thick line is their mean; a line still falling at the right edge would gain from more "
        "steps.",
        (curves.training, curves.training_time),
    ),
    (
        "Norms of the gradients",
        "Of every step, before it was clipped: the dot is the median, the line goes from the tenth to the "
        "ninetieth percentile, mean over seeds. A clip at a fixed norm meets settings whose losses differ in "
        "scale unequally; beside the line stands the share of steps that were clipped, where any could be.",
        (figures.gradients,),
    ),
    (
        "Training set against test set",
        "From the bound on the first training items (ring), as many as there are test items, to that on "
        "the test set (crossed disc). ± is the standard error of the difference over items, which are not "
        "the same ones, and the grey line twice that to either side of the ring: a disc within it is left "
        "open, for nothing says that the model does better on what it has seen.",
        (figures.train_test,),
    ),
    (
        "What each objective attends to",
        "The weight that each training loss puts on the noise error at each noise level; at the dashed line "
        "it trains the very bound that is measured.",
        (curves.weights,),
    ),
)


PICTURES: tuple[tuple[str, str, str, Callable[[Run], Path | None]], ...] = (
    (
        "Samples",
        "Drawn by each setting's first seed, from the same noise; a good bound does not promise good looks, "
        "nor the reverse.",
        "",
        lambda run: run.samples,
    ),
    (
        "By caption",
        "A row of samples of each setting's first seed for each of a few held-out captions, some of "
        "combinations that were kept from training.",
        "strips",
        lambda run: run.dir / "samples" / "prompts.png",
    ),
    (
        "From noise to sample",
        "The way of a few samples of each setting's first seed: a row each, from noise at the left to the "
        "sample at the right, at equal shares of the sampler's steps.",
        "strips",
        lambda run: run.dir / "samples" / "trajectory.png",
    ),
)


def colours(hues: Mapping[str, str]) -> dict[str, str]:
    """One colour per label, the same in every figure and table; labels of one hue share it."""
    places = {hue: i for i, hue in enumerate(dict.fromkeys(hues.values()))}
    return {label: colour(places[hue]) for label, hue in hues.items()}


def headline_svg(comparison: Comparison, palette: dict[str, str], name: str) -> str:
    """The headline figure as SVG; empty while there is no result."""
    return _svg(comparison, palette, _headline(comparison), name)


def headline_png(comparison: Comparison, palette: dict[str, str]) -> bytes | None:
    """The headline figure as PNG for a README; None while there is no result."""
    with styled():
        figure = _headline(comparison)(comparison, palette)
    return to_png(figure) if figure else None


def tuning_svg(tuning: Tuning | None, palette: dict[str, str]) -> str:
    """The tuning curves as SVG; empty for a sweep that tuned nothing."""
    if tuning is None:
        return ""
    about = "Validation bound by what was tuned."
    with styled():
        figure = draw_tuning(tuning, palette)
        with narrow():
            slim = draw_tuning(tuning, palette)
    if figure is None or slim is None:
        return ""
    return both(to_svg(figure, "tuning", about), to_svg(slim, "tuning-n", about))


def how_headline(comparison: Comparison) -> str:
    """One sentence on how to read the headline figure."""
    if measures.deciding(comparison):
        return MEASURED
    crossed = factorial.crossing(comparison)
    return factorial.HOW.format(lines=crossed.lines.key, along=crossed.along.key) if crossed else HEADLINE


def _headline(comparison: Comparison) -> Draw:
    """The figure of what decides: the bound, or a measure where cells share one model."""
    name = measures.deciding(comparison)
    if name:
        return draw_measures.measure_figure(measures.known(comparison.cells)[name])
    return factorial.crossing_figure if factorial.crossing(comparison) else figures.headline


def draw_panels(comparison: Comparison, palette: dict[str, str], name: str) -> list[Panel]:
    """Every panel for which the runs recorded what it shows."""
    shown = []
    # of one and the same model there is nothing to compare but its samples
    for title, how, draws in () if measures.deciding(comparison) else PANELS:
        svgs = [_svg(comparison, palette, draw, f"{name}-{draw.__name__}") for draw in draws]
        if any(svgs):
            shown.append(Panel(title, how, tuple(svg for svg in svgs if svg)))
    return shown + _own(comparison, palette, name) + _measured(comparison, palette, name)


def _own(comparison: Comparison, palette: dict[str, str], name: str) -> list[Panel]:
    """Those that the owner of the clone has added; one that fails says so, and the others stand."""
    shown = []
    for place, module in enumerate(own_panels.modules()):
        entries, trouble = own_panels.entries(module)
        if trouble:
            shown.append(Panel(f"Panels of {module}", f"They cannot be had. {trouble}", ()))
        for i, (title, how, draws) in enumerate(entries):
            names = [f"{name}-own{place}-{i}-{j}" for j in range(len(draws))]
            try:
                svgs = [_one_svg(comparison, palette, *one) for one in zip(draws, names, strict=True)]
            except (Exception, SystemExit) as error:  # not ours to mend
                shown.append(
                    Panel(title, f"It cannot be drawn. {own_panels.describe_panel_error(error)}", ())
                )
                continue
            if any(svgs):
                shown.append(Panel(title, how, tuple(svg for svg in svgs if svg)))
    return shown


def _measured(comparison: Comparison, palette: dict[str, str], name: str) -> list[Panel]:
    """The measures of samples; what they rank is in the verdict."""
    shown = [
        metric
        for key, metric in measures.known(comparison.cells).items()
        if key != measures.deciding(comparison)
    ]
    svgs = [
        _svg(comparison, palette, draw_measures.measure_figure(metric), f"{name}-{metric.name}")
        for metric in shown
    ]
    if not any(svgs):
        return []
    how = " ".join(filter(None, (measures.about(comparison), MEASURED)))
    return [Panel("Measures of samples", how, tuple(svg for svg in svgs if svg))]


def sample_pictures(comparison: Comparison) -> list[tuple[str, str, str, list[SamplePicture]]]:
    """Title, how to read, kind and pictures of each entry of `PICTURES` that some run has."""
    shown = [(title, how, kind, _first_of_each(comparison, of)) for title, how, kind, of in PICTURES]
    return [(title, how, kind, pictures) for title, how, kind, pictures in shown if pictures]


def _first_of_each(comparison: Comparison, of: Callable[[Run], Path | None]) -> list[SamplePicture]:
    """The first seed's picture of each cell, where its file is there and is a PNG."""
    pictures = []
    for cell in comparison.cells:
        for seed, run in cell.runs.items():
            if data := png(of(run), run, LARGEST_IMAGE):
                caption = cell.label if seed is None else f"{cell.label}, seed {seed}"
                uri = "data:image/png;base64," + base64.b64encode(data).decode()
                pictures.append(SamplePicture(cell.label, caption, uri))
                break
    return pictures


def _svg(comparison: Comparison, palette: dict[str, str], draw: Draw, name: str) -> str:
    """The figure, and for narrow screens another one that fits; the page shows one of the two."""
    broad = _one_svg(comparison, palette, draw, name)
    with narrow():
        return both(broad, _one_svg(comparison, palette, draw, f"{name}-n")) if broad else ""


def both(broad: str, slim: str) -> str:
    """Two figures of the same, of which the page shows the one that fits its screen."""
    return f'<div class="broad">{broad}</div><div class="narrow">{slim}</div>'


def _one_svg(comparison: Comparison, palette: dict[str, str], draw: Draw | OwnDraw, name: str) -> str:
    with styled():
        figure = draw(comparison, palette)
    if figure is None or isinstance(figure, str):  # text: SVG or HTML of its own making
        return figure or ""
    about = first_line(draw.__doc__ or getattr(draw, "__name__", "panel"))
    return to_svg(figure, name, f"{about} Cells: {', '.join(c.label for c in comparison.cells)}.")
