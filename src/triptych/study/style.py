"""The style of every figure, and the conversion of figures to SVG in a page or to PNG files.

Each known colour becomes a CSS variable, so that one figure suits light and dark pages and stands
alone.
"""

import io
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from triptych.run.read import Run
from triptych.study.formatting import four_digits, shorten

INK, MUTED, GRID, PAPER = "#20242b", "#68707c", "#e2e5ea", "#fefefe"
# The colours of Okabe and Ito without yellow, then muted ones of Tol. They are distinct for
# colour-blind readers.
PALETTE = {
    "#0072b2": "#56aeea", "#d55e00": "#ff8d52", "#009e73": "#2fc79d", "#c56a9c": "#e79fc8",
    "#dd9500": "#f6ba45", "#4aa8dc": "#98d4f8", "#6f4fbf": "#a892f5", "#8c510a": "#cf9655",
    "#882255": "#d8709f", "#7d8a1e": "#c3cf62", "#30808c": "#72c4cf", "#5d6673": "#aab2be",
}  # fmt: skip
MARKERS = "osD^vPX"
LINE_WIDTH = 1.6  # as in chart.js
# Dashes and gaps, in widths of a line.
LINES = ("-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.6, 1.4, 1.6)), (0, (2.6, 2.6)))
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    c: f"c{i}" for i, c in enumerate(PALETTE)
}

SIZE = 9.0  # size of all text, in points
# Size of a figure in inches. Two fit side by side on a screen, and one on a phone.
WIDTH, HEIGHT = 4.7, 3.4
SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": SIZE, "text.color": INK, "text.parse_math": False,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.linewidth": 0.7, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.labelpad": 6.0,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.major.size": 3, "ytick.major.size": 3, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "axes.formatter.useoffset": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "legend.frameon": False, "legend.handlelength": 2.2, "legend.handletextpad": 0.4,
    "svg.fonttype": "none", "svg.hashsalt": "triptych", "lines.solid_capstyle": "round",
    # Journals refuse Type 3 fonts, matplotlib's default.
    "pdf.fonttype": 42,
}  # fmt: skip
ARROW = "An arrow points to a value beyond the axis."


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw with our settings, and without warnings about glyphs that only one font lacks."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def run_gid(run: Run) -> str:
    """Return the name (``gid``) of a run's dots and lines, which the page uses to find the run."""
    return f"run-{zlib.crc32(os.fsencode(run.dir)):08x}"


class Drawing(Figure):
    """A figure with the sentences that its caption needs to explain what is drawn."""

    def __init__(self, height: float):
        super().__init__(figsize=(WIDTH, height))
        self.sentences: list[str] = []


def explain(ax: Axes, sentence: str) -> None:
    """Add a sentence to the caption of the axes' figure, unless the caption has it already."""
    figure = ax.figure
    if isinstance(figure, Drawing) and sentence not in figure.sentences:
        figure.sentences.append(sentence)


def side_beyond(limits: tuple[float, float], value: float) -> int:
    """Return 1 for a value above the limits of an axis, -1 below them, else 0."""
    return int(value > limits[1]) - int(value < limits[0])


def mark_beyond(ax: Axes, x: Iterable[float], y: Iterable[float], color: str) -> None:
    """Draw an arrow at the edge of the frame for each point above or below it."""
    limits = ax.get_ylim()
    for place, value in zip(x, y, strict=True):
        side = side_beyond(limits, value)
        if side:
            edge = limits[(side + 1) // 2]
            ax.plot(place, edge, " ^v"[side], color=color, markersize=6, clip_on=False)
            explain(ax, ARROW)


def new_axes(height: float, left: float, right: float) -> tuple[Figure, Axes]:
    """Return a figure of `WIDTH` x `height` inches with one axes; margins are in inches too."""
    figure = Drawing(height)
    box = (left / WIDTH, 0.5 / height, (WIDTH - left - right) / WIDTH, (height - 0.62) / height)
    return figure, figure.add_axes(box)


def legend_names(labels: Sequence[str]) -> dict[str, str]:
    """Return {label: short name} with 18 letters, or up to 26 if the names are equal otherwise."""
    names: dict[str, str] = {}
    for length in range(18, 27):
        names = {label: shorten(label, length) for label in labels}
        if len({*names.values()}) == len(names):
            break
    return names


def line_dash(label: str, colours: Mapping[str, str]) -> Any:
    """Return a label's dash pattern, by which labels of one colour differ."""
    same = [other for other, ink in colours.items() if ink == colours[label]]
    return LINES[same.index(label) % len(LINES)]


def css_dash(label: str, colours: Mapping[str, str]) -> str:
    """Return a label's dash pattern as CSS, for the lines that the page's script draws."""
    dash = line_dash(label, colours)
    return "none" if dash == "-" else " ".join(f"{LINE_WIDTH * part:g}" for part in dash[1])


class LineFigure:
    """A figure with a line per label, and a legend in the order of the lines' last values."""

    def __init__(self, labels: Iterable[str], colours: Mapping[str, str]):
        self.names = legend_names([*labels])
        self.colours = colours
        self.ends: dict[str, float] = {}
        # Reserve the width of DejaVu, which is wider than most fonts of browsers.
        right = max(map(len, self.names.values()), default=0) * SIZE * 0.62 / 72
        self.figure, self.ax = new_axes(HEIGHT, 0.78, right + 0.55)

    def line(self, label: str, x: Any, y: Any, **how: Any) -> None:
        """Draw a line and name it in the legend; `marker=True` gives it the label's own marker."""
        if how.get("marker") is True:
            how["marker"] = MARKERS[list(self.colours).index(label) % len(MARKERS)]
        how = {"linewidth": LINE_WIDTH, "linestyle": line_dash(label, self.colours)} | how
        self.ax.plot(x, y, color=self.colours[label], label=label, **how)
        finite = [float(value) for value in y if math.isfinite(value)]
        if finite:
            self.ends[label] = finite[-1]

    def ticks(self, places: Sequence[float] | np.ndarray, texts: Sequence[str], log: bool) -> None:
        """Put ticks with these texts at these places of the x axis, and no others."""
        if log:
            self.ax.set_xscale("log")
        self.ax.set_xticks(places, texts)
        self.ax.minorticks_off()

    def finish(self, xlabel: str, ylabel: str) -> Figure:
        """Label the axes, add the legend and a text alternative with all last values; return it."""
        self.ax.set_xlabel(xlabel)
        self.ax.set_ylabel(ylabel)
        order = sorted(self.ends, key=lambda label: -self.ends[label])
        last = [f"{self.names[label]} {four_digits(self.ends[label])}" for label in order]
        self.figure.set_label(f"{ylabel} at the right end: {', '.join(last)}.")
        handles = {str(line.get_label()): line for line in self.ax.lines}
        # If there are too many lines for the legend, show every n-th, with the lowest.
        apart = max(1, math.ceil(len(order) * SIZE * 1.45 / 72 / (HEIGHT - 0.62)))
        if apart > 1:
            order = order[::-1][::apart][::-1]
            explain(self.ax, f"The legend names {len(order)} of {len(self.ends)} lines.")
        named = [handles[label] for label in order], [self.names[label] for label in order]
        self.ax.legend(*named, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
        return self.figure


def log_axis(ax: Axes, values: np.ndarray) -> None:
    """Make the y axis logarithmic, with plain numbers, unless the values hardly differ."""
    values = values[np.isfinite(values) & (values > 0)]
    decades = math.log10(values.max() / values.min()) if values.size else 1.0
    # Ranges below a factor of 5 may contain fewer than two of the ticks 1, 2, 5.
    if decades < 0.7:
        return
    ax.set_yscale("log")
    subs = (1,) if decades > 2 else (1, 2, 5)
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    plain_ticks(ax.yaxis)


def plain_ticks(axis: Axis) -> None:
    """Show plain numbers along a log axis."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def to_svg(figure: Figure, name: str) -> str:
    """Return a figure as inline SVG, described by its label, with CSS colours and unique ids."""
    out = io.StringIO()
    with figure_style():
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\sid="(run-[0-9a-f]{8})"', r' data-run="\1"', text)
    text = re.sub(r'(\sid="|"#|url\(#)', rf"\g<1>{name}-", text)
    for known, variable in VARIABLES.items():
        colour = re.compile(known + r"(?![0-9a-f])", re.IGNORECASE)
        text = colour.sub(f"var(--{variable}, {known})", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font, sans-serif)", text)
    # Set widths in pixels, so that text has the same size in each figure and is legible on a phone.
    width = figure.get_size_inches()[0]
    style = f"max-width:{118 * width:.0f}px;min-width:{68 * width:.0f}px"
    label = escape(str(figure.get_label()).strip(), {'"': "&quot;"})
    head = f'<svg role="img" aria-label="{label}" class="plot" style="{style}" '
    # Use a function, as re.sub would interpret backslashes of a name in a replacement string.
    return re.sub(
        r'^<svg ([^>]*?)(?:width|height)="[^"]*" ?([^>]*?)(?:width|height)="[^"]*"',
        lambda match: f"{head}{match[1]}{match[2]}", text,
    )  # fmt: skip


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """Return the figure as PNG on white, as a README shows it."""
    out = io.BytesIO()
    with figure_style():
        FigureCanvasAgg(figure)
        figure.savefig(out, format="png", dpi=dpi, facecolor="white")
    return out.getvalue()
