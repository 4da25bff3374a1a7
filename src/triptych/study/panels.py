"""The figures of one comparison, each with a title and one sentence on how to read it."""

import base64
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from triptych.config.identity import slug
from triptych.config.own_code import describe_error, trusted_packages
from triptych.config.source import module_file
from triptych.study import curves, figures
from triptych.study.cells import MeasureTable
from triptych.study.comparison import Comparison
from triptych.study.footnotes import sample_counts_sentence
from triptych.study.style import PALETTE, figure_style

Palette = Mapping[str, str]
Draw = Callable[[Comparison, Palette], Figure | None]
PNG = b"\x89PNG\r\n\x1a\n"
# Maximum number of bytes of a sample grid, so that the page can be sent by mail.
LARGEST_IMAGE = 4 * 2**20


class PanelFigure(NamedTuple):
    """A figure of a comparison: its name, what it shows, and the function that draws it."""

    name: str
    shows: str
    draw: Draw


class Panel(NamedTuple):
    """Figures by name, side by side under one title.

    `how`: how to read them. `problem`: why they could not be drawn, or "".
    """

    title: str
    how: str
    figures: Mapping[str, Figure]
    problem: str = ""


class Picture(NamedTuple):
    """A sample grid as a data URI, with its caption and the label of its cell."""

    label: str
    caption: str
    uri: str


class Gallery(NamedTuple):
    """Pictures from one file of each cell's run; `style`: their CSS classes."""

    title: str
    how: str
    style: str
    pictures: list[Picture]


DIFFERENCES = (
    "Paired differences to the best setting, with intervals that hold together in 95% of reports. "
    "A filled dot marks a significant difference by the corrected test."
)

HEADLINE = PanelFigure("headline", "Test bound of each seed.", figures.headline)
FOREST = PanelFigure(
    "forest",
    "Paired difference to the best; a filled dot is significant by the corrected test.",
    figures.forest,
)
CROSSING = PanelFigure(
    "crossing_figure",
    "The test bound along one setting, a line for each value of the other.",
    curves.crossing_figure,
)

PANELS: tuple[tuple[str, str, tuple[PanelFigure, ...]], ...] = (
    (
        "Error by noise level",
        "The error of the predicted noise at each noise level.",
        (
            PanelFigure(
                "noise_levels",
                "Mean squared error of the noise estimate per dimension, by noise level.",
                curves.noise_levels,
            ),
        ),
    ),
    (
        "Tweedie: posterior mean against the truth",
        "The error of the posterior mean that follows from the model's score, at each noise level.",
        (
            PanelFigure(
                "posterior_mean_error",
                "Squared error of the posterior mean against the true one, by noise level.",
                curves.posterior_mean_error,
            ),
        ),
    ),
    (
        "Validation bound during training",
        "At a constant learning rate, a line that falls to its end needs more steps; a rate "
        "annealed to zero flattens every line there. The cost of a step differs, so compare by "
        "seconds as well.",
        (
            PanelFigure(
                "training",
                "Validation bound over training steps.",
                curves.training,
            ),
            PanelFigure(
                "training_time",
                "Validation bound over seconds of training.",
                curves.training_time,
            ),
        ),
    ),
    (
        "What each objective attends to",
        "The weight of the noise error in each training loss, by noise level. A loss on the dashed "
        "line is the measured bound itself.",
        (
            PanelFigure(
                "weights",
                "Weight each objective puts on the noise error, by noise level.",
                curves.weights,
            ),
        ),
    ),
)

# (title, explanation, style, file in a run's folder of samples)
PICTURES = (
    (
        "Samples",
        "Samples of each setting's first seed, from the same noise. A good bound does not imply "
        "good samples, nor the reverse.",
        "",
        "final.png",
    ),
    (
        "By caption",
        "Samples of each setting's first seed, one row for each of a few held-out captions. Some "
        "captions have combinations that were left out of training.",
        "",
        "prompts.png",
    ),
    (
        "From noise to sample",
        "Samples of each setting's first seed at equal intervals of the sampler's steps, from "
        "noise (left) to the final sample (right).",
        "strips",
        "trajectory.png",
    ),
)


def assign_colours(hues: Mapping[str, str]) -> dict[str, str]:
    """Return {label: colour}, the same for every figure and table; labels of one hue share it.

    ``hues``: {label: any key of its colour}. Colours repeat after twelve, where line and marker
    styles change.
    """
    inks = dict(zip(dict.fromkeys(hues.values()), itertools.cycle(PALETTE), strict=False))
    return {label: inks[hue] for label, hue in hues.items()}


def headline_panels(comparison: Comparison, palette: Palette) -> list[Panel]:
    """Draw the deciding figures: the bound, or a measure if cells share a model; differences."""
    title = comparison.heading
    if comparison.deciding:
        drawings = _figures_of_measures([comparison.deciding])
        deciding = _panel(comparison, palette, title, "", drawings)
    else:
        deciding = _bound_panel(comparison, palette)
    differences = _panel(comparison, palette, title, DIFFERENCES, [FOREST])
    return [panel for panel in (deciding, differences) if panel.figures]


def _bound_panel(comparison: Comparison, palette: Palette) -> Panel:
    """Draw the test bound: lines along a setting if two are crossed, else one row per cell."""
    crossed = curves.find_crossing(comparison)
    if crossed is None:
        how = "Further left is better."
        drawing = HEADLINE
    else:
        how = curves.HOW.format(lines=crossed.lines.key, along=crossed.along.key)
        drawing = CROSSING
    return _panel(comparison, palette, comparison.heading, how, [drawing])


def known_figures(comparison: Comparison, palette: Palette) -> dict[str, Figure]:
    """Draw every figure for which runs recorded data; return {name: figure}."""
    drawn: dict[str, Figure] = {}
    for panel in (*headline_panels(comparison, palette), *draw_panels(comparison, palette)):
        drawn |= panel.figures
    return drawn


def draw_panels(comparison: Comparison, palette: Palette) -> list[Panel]:
    """Draw every panel for which the runs recorded data; user-supplied panels come last."""
    panels = []
    if not comparison.deciding:  # if all settings share one model, only its samples can be compared
        panels += [_panel(comparison, palette, *panel) for panel in PANELS]
    others = [table for table in comparison.measures.values() if table is not comparison.deciding]
    how = sample_counts_sentence(comparison)
    drawings = _figures_of_measures(others)
    panels.append(_panel(comparison, palette, "Measures of samples", how, drawings))
    panels += _user_panels(comparison, palette)
    return [panel for panel in panels if panel.figures or panel.problem]


def _figures_of_measures(tables: Iterable[MeasureTable]) -> list[PanelFigure]:
    """Return figures of measures: lines over a key's values, or a row of dots for each setting."""
    drawings = []
    for table in tables:
        shows = f"{table.metric.label} of samples."
        drawings.append(PanelFigure(table.metric.name, shows, figures.measure_figure(table)))
    return drawings


def _panel(
    comparison: Comparison, palette: Palette, title: str, how: str, drawings: Sequence[PanelFigure]
) -> Panel:
    """Draw a panel's figures, each with a text alternative; the caption explains what they show."""
    cells = ", ".join(cell.label for cell in comparison.cells)
    drawn = {}
    sentences = {how: None}
    for name, shows, draw in drawings:
        with figure_style():
            figure = draw(comparison, palette)
        if figure:
            figure.set_label(f"{shows} Cells: {cells}. {figure.get_label()}")
            drawn[name] = figure
            sentences |= dict.fromkeys(getattr(figure, "sentences", ()))
    return Panel(title, " ".join(filter(None, sentences)), drawn)


def _user_panels(comparison: Comparison, palette: Palette) -> Iterator[Panel]:
    """Draw ``PANELS`` of each trusted package's ``panels.py``; show an error in its panel's place.

    A reported directory cannot name a package, so a report on untrusted runs executes none of their
    code.
    """
    for module in (f"{package}.panels" for package in trusted_packages()):
        if not module_file(module):
            continue
        try:
            own = import_module(module).PANELS
            panels = [(str(title), str(how), [*draws]) for title, how, draws in own]
        except (Exception, SystemExit) as error:
            yield _error_panel(f"Panels of {module}", error)
            continue
        for title, how, draws in panels:
            try:
                yield Panel(title, how, _draw_user_panels(comparison, palette, module, draws))
            except (Exception, SystemExit) as error:
                yield _error_panel(title, error)


def _draw_user_panels(
    comparison: Comparison, palette: Palette, module: str, draws: Sequence[Draw]
) -> dict[str, Figure]:
    """Call a user-defined panel's functions; return {name: figure}."""
    drawn = {}
    with figure_style():
        for draw in draws:
            figure = draw(comparison, palette)
            if isinstance(figure, Figure):
                drawn[slug(f"{module}-{draw.__name__}")] = figure
    return drawn


def _error_panel(title: str, error: BaseException) -> Panel:
    """Return a panel that only states an error."""
    problem = f"This panel cannot be drawn: {describe_error(error)}"
    return Panel(title, problem, {}, problem)


def sample_pictures(comparison: Comparison) -> list[Gallery]:
    """Return a gallery for each entry of `PICTURES` whose file some run has."""
    # Data with a bound in bits are images. Samples of other data are plotted.
    plotted = "" if comparison.measure == "bpd" else " plotted"
    galleries = []
    for title, how, style, file in PICTURES:
        pictures = _first_picture_per_cell(comparison, file)
        if pictures:
            galleries.append(Gallery(title, how, style + plotted, pictures))
    real = next(filter(None, (_data_uri(run.dir, "real.png") for run in comparison.runs)), "")
    if galleries and real:
        galleries[0].pictures.append(Picture("", "real images of the test set", real))
    return galleries


def _first_picture_per_cell(comparison: Comparison, file: str) -> list[Picture]:
    """Return the first seed's picture of each cell, if its file exists and is a PNG."""
    pictures = []
    for cell in comparison.cells:
        for seed, run in cell.runs.items():
            uri = _data_uri(run.dir, file)
            if uri:
                pictures.append(Picture(cell.label, f"{cell.label}, seed {seed}", uri))
                break
    return pictures


def _data_uri(run: Path, file: str) -> str:
    """Return a run's picture as a data URI; "" if it is no PNG, too large, or outside the run."""
    path = run / "samples" / file
    try:
        inside = path.resolve().is_relative_to(run.resolve())
        if not inside or not path.is_file() or path.stat().st_size > LARGEST_IMAGE:
            return ""
        data = path.read_bytes()
    except OSError:
        return ""
    if not data.startswith(PNG):
        return ""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
