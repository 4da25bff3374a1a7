"""The figures of one comparison, each with a title and one sentence on how to read it."""

import base64
import itertools
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from triptych.config.identity import slug
from triptych.config.own_code import describe_error, trusted
from triptych.config.source import file_of
from triptych.run.parsing import first_line
from triptych.run.read import Run
from triptych.study import curves, figures
from triptych.study.cells import Comparison
from triptych.study.style import PALETTE, styled
from triptych.study.verdict import about

Draw = Callable[[Comparison, Mapping[str, str]], Figure | None]
Picture = tuple[str, str, str]  # a cell's label, its caption, the sample grid as a data URI
PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_IMAGE = 4 * 2**20  # bytes of one sample grid: more would make the page too heavy to mail


class Panel(NamedTuple):
    """Figures by name, shown side by side under one title."""

    title: str
    how: str
    figures: Mapping[str, Figure]


# parts of captions, left out where no figure shows it
ARROW = " An arrow: beyond the axis."
OVER = f", left out where there are over {curves.THIN}"
BARS = ", at a height of its own; the upright bar is their mean"
POINTS = "Points are means over seeds, and upright lines span the seeds. "
BANDS = " Bands are standard errors over seeds."
THICK = f" The thick line is the mean where seeds overlap; thin lines are seeds{OVER}."
HEADLINE = f"Each dot is one seed{BARS}. Further left is better.{ARROW}"
DIFFERENCES = (
    "Paired differences to the best setting. A line is the interval at the level of the corrected test: "
    "without zero, and with a filled dot, where the test claims a difference."
)
SAME = " The grey band holds what is called the same."
FAILED = "It cannot be drawn."  # before an own panel's error
FLOOR = (
    "The dashed line is the noise floor, the same measure between true sets, and the grey band its range: "
    "values in it look like true data."
)

PANELS: tuple[tuple[str, str, tuple[Draw, ...]], ...] = (
    (
        "Error by noise level",
        f"How wrong the network's idea of the noise is at each noise level.{BANDS}",
        (curves.noise_levels,),
    ),
    (
        "Tweedie: posterior mean against the truth",
        "How far the mean that follows from the model's score is from the true posterior mean, at each noise "
        "level; dashed, the posterior's own variance, which no model removes.",
        (curves.posterior_mean_error,),
    ),
    (
        "Validation bound during training",
        f"Left against steps, right against seconds of training: equal steps are not equal cost.{THICK} "
        "The axis fits the later values: earlier ones may lie above it. A line still falling at the right "
        "edge would gain from more steps.",
        (curves.training, curves.training_time),
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
        "",
        lambda run: run.dir / "samples" / "prompts.png",
    ),
    (
        "From noise to sample",
        "The way of a few samples of each setting's first seed, from noise at the left to the sample at "
        "the right, at equal shares of the sampler's steps.",
        "strips",
        lambda run: run.dir / "samples" / "trajectory.png",
    ),
)


def colours(hues: Mapping[str, str]) -> dict[str, str]:
    """Assign a colour to each label, equal in every figure and table; labels of one hue share it.

    Colours repeat after twelve, where line and marker styles change.
    """
    inks = dict(zip(dict.fromkeys(hues.values()), itertools.cycle(PALETTE), strict=False))
    return {label: inks[hue] for label, hue in hues.items()}


def headline_panels(comparison: Comparison, palette: Mapping[str, str]) -> list[Panel]:
    """Draw what decides: bound and differences to the best, or a measure where cells share a model."""
    how = DIFFERENCES if comparison.rule.equal_within is None else DIFFERENCES + SAME
    known: list[tuple[str, Draw]] = [(HEADLINE, figures.headline), (how, figures.forest)]
    if table := comparison.deciding:
        known = [(_measured(comparison), figures.measure_figure(table))]
    elif crossed := curves.crossing(comparison):
        how = curves.HOW.format(lines=crossed.lines.key, along=crossed.along.key)
        known[0] = how, curves.crossing_figure
    panels = (_panel(comparison, palette, comparison.heading, how, draw) for how, draw in known)
    return [panel for panel in panels if panel.figures]


def _measured(comparison: Comparison) -> str:
    """Return how to read figures of measures: lines over a key's values, or a row of dots a setting."""
    if any(run.measured.key for run in comparison.runs if run.measured):
        return POINTS + FLOOR
    return f"Each dot is one seed{BARS}.{ARROW} {FLOOR}"


def known_figures(comparison: Comparison, palette: Mapping[str, str]) -> dict[str, Figure]:
    """Draw every figure of which the runs recorded what it shows; {name: figure}."""
    panels = [*headline_panels(comparison, palette), *draw_panels(comparison, palette)]
    return {name: figure for panel in panels for name, figure in panel.figures.items()}


def draw_panels(comparison: Comparison, palette: Mapping[str, str]) -> list[Panel]:
    """Draw every panel for which the runs recorded what it shows; further measures and own panels last."""
    deciding = comparison.deciding  # between samples of one model, which has no other figures to compare
    how = " ".join(filter(None, (about(comparison), _measured(comparison))))
    others = [figures.measure_figure(one) for one in comparison.measures.values() if one is not deciding]
    known = [*(() if deciding else PANELS), ("Measures of samples", how, others)]
    panels = [_panel(comparison, palette, title, how, *draws) for title, how, draws in known]
    panels += _own_panels(comparison, palette)
    return [panel for panel in panels if panel.figures or panel.how.startswith(FAILED)]


def _panel(comparison: Comparison, palette: Mapping[str, str], title: str, how: str, *draws: Draw) -> Panel:
    """Draw a panel, its caption without words on what these figures do not show."""
    with styled():
        drawn = {draw: figure for draw in draws if (figure := draw(comparison, palette))}
    for draw, figure in drawn.items():
        what = first_line(draw.__doc__ or "").removeprefix("Return ")
        cells = ", ".join(cell.label for cell in comparison.cells)
        figure.set_label(f"{what[:1].upper()}{what[1:]} Cells: {cells}. {figure.get_label()}")
    lines = (line for figure in drawn.values() for ax in figure.axes for line in ax.lines)
    absent = [] if any(line.get_marker() in ("<", ">") for line in lines) else [ARROW]
    if max((len(cell.runs) for cell in comparison.cells), default=0) < 2:
        absent += [BARS, POINTS, BANDS, THICK]
    if len(comparison.runs) <= curves.THIN:
        absent.append(OVER)
    for words in absent:
        how = how.replace(words, "")
    return Panel(title, how, {draw.__name__: figure for draw, figure in drawn.items()})


def _own_panels(comparison: Comparison, palette: Mapping[str, str]) -> list[Panel]:
    """Draw ``PANELS`` of each trusted package's ``panels.py``; an error stands in its panel's place.

    A reported directory cannot name a package: a report on a stranger's runs executes none of their code.
    """
    drawn = []
    for module in filter(file_of, (f"{package}.panels" for package in trusted())):
        try:
            panels = [(str(a), str(b), tuple(c)) for a, b, c in import_module(module).PANELS]
        except (Exception, SystemExit) as error:
            panels = [(f"Panels of {module}", f"{FAILED} {describe_error(error)}", ())]
        for title, how, draws in panels:
            try:
                with styled():
                    own = {slug(f"{module}-{draw.__name__}"): draw(comparison, palette) for draw in draws}
            except (Exception, SystemExit) as error:  # not ours to mend
                how, own = f"{FAILED} {describe_error(error)}", {}
            own = {key: figure for key, figure in own.items() if isinstance(figure, Figure)}
            for figure in {*own.values()}:
                figure.set_label(f"{title} {figure.get_label().removeprefix(title).lstrip()}")
            drawn.append(Panel(title, how, own))
    return drawn


def sample_pictures(comparison: Comparison) -> list[tuple[str, str, str, list[Picture]]]:
    """List title, how to read, kind and pictures of each entry of `PICTURES` that some run has."""
    shown = [(title, how, kind, _first_of_each(comparison, of)) for title, how, kind, of in PICTURES]
    real = (_data_uri(run.dir / "samples" / "real.png", run) for run in comparison.runs)
    if shown[0][3] and (uri := next(filter(None, real), "")):
        shown[0][3].append(("", "real images of the test set", uri))
    return [
        (title, how, kind + " plotted" * _plotted(pictures[0][2]), pictures)
        for title, how, kind, pictures in shown
        if pictures
    ]


def _plotted(uri: str) -> bool:
    """Whether a PNG is a plot: those of matplotlib have an alpha channel, grids of images none."""
    return base64.b64decode(uri.partition(",")[2][:36])[25:26] == b"\x06"


def _first_of_each(comparison: Comparison, of: Callable[[Run], Path | None]) -> list[Picture]:
    """Return the first seed's picture of each cell, where its file is there and is a PNG."""
    pictures = []
    for cell in comparison.cells:
        for seed, run in cell.runs.items():
            if uri := _data_uri(of(run), run):
                caption = cell.label if seed is None else f"{cell.label}, seed {seed}"
                pictures.append((cell.label, caption, uri))
                break
    return pictures


def _data_uri(path: Path | None, run: Run) -> str:
    """Return a PNG of the run's own as a data URI; "": it is none, lies elsewhere or is too large."""
    try:
        if path is None or not path.is_file() or path.stat().st_size > LARGEST_IMAGE:
            return ""
        if not path.resolve().is_relative_to(run.dir.resolve()):
            return ""
        data = path.read_bytes()
    except OSError:
        return ""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}" if data.startswith(PNG) else ""
