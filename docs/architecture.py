"""The picture of architecture.md: python docs/architecture.py docs/images/architecture.png"""

import sys

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

INK, MUTED, LINE, PAPER = "#1b1b1f", "#5c5c66", "#b9b9c4", "#ffffff"
TINTS = {"see": "#fbe9e2", "run": "#fdf3d8", "one": "#e3f1e6", "math": "#e2edf8", "base": "#eeeef2"}

# from high to low: (tint, [(room, what it is)])
ROOMS = [
    ("see", [("cli", "the commands")]),
    ("see", [("study", "many runs: sweeps, comparisons, the page")]),
    ("run", [("run", "one run: directory, build, fit, samples, record")]),
    (
        "one",
        [("models", "LightningModules, the bound's account"), ("callbacks", "while it trains")],
    ),
    ("one", [("data", "batches"), ("networks", "raw outputs")]),
    ("math", [("diffusion", "the mathematics: tensors in, tensors out")]),
    ("base", [("config", "keys, checks, one builder")]),
    ("base", [("errors, files, records, declare", "")]),
]
# (step, what happens, room)
STEPS = [
    ("command", "triptych-train objective=v", "cli"),
    ("compose, check", "every key and range, before torch is imported", "config"),
    ("directory", "new, gone on with, or refused", "run"),
    ("build", "data, model, sampler, measures: typed, once", "run"),
    ("fit", "from the start or the last checkpoint", "run"),
    ("account", "the bound, term by term, of every test item", "models"),
    ("draw, measure", "samples and their distance to the data", "run"),
    ("record", "summary.json, which every reader starts from", "run"),
    ("compare", "intervals and verdicts over many runs", "study"),
]


def box(ax, x, y, width, height, tint):
    style = "round,pad=0,rounding_size=0.08"
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=tint, edgecolor=LINE)
    )


def arrow(ax, start, end, colour=MUTED):
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.2})


def rooms(ax) -> None:
    width, height, gap = 6.2, 0.52, 0.16
    top = len(ROOMS) * (height + gap)
    for row, (tint, cells) in enumerate(ROOMS):
        y, each = top - (row + 1) * (height + gap), (width - 0.12 * (len(cells) - 1)) / len(cells)
        for k, (name, what) in enumerate(cells):
            x = 0.45 + k * (each + 0.12)
            box(ax, x, y, each, height, TINTS[tint])
            lift = 0.11 if what else 0
            ax.text(
                x + each / 2,
                y + height / 2 + lift,
                name,
                ha="center",
                va="center",
                weight="bold",
                size=9.5,
            )
            ax.text(
                x + each / 2,
                y + height / 2 - 0.12,
                what,
                ha="center",
                va="center",
                color=MUTED,
                size=8.2,
            )
    arrow(ax, (0.2, top - gap), (0.2, 0.05))
    ax.text(
        0.06,
        top / 2,
        "imports: down, and to the right",
        rotation=90,
        ha="center",
        va="center",
        color=MUTED,
        size=8.5,
    )
    ax.text(0.45, top + 0.16, "Rooms of src/triptych", weight="bold", size=11)


def path(ax) -> None:
    x, width, height = 7.6, 4.9, 0.52
    full = len(ROOMS) * 0.68
    pitch = (full - 0.16 - height) / (len(STEPS) - 1)
    tints = {name: tint for tint, cells in ROOMS for name, _ in cells}
    for row, (step, what, room) in enumerate(STEPS):
        y = full - 0.16 - height - row * pitch
        box(ax, x, y, width, height, TINTS[tints[room]])
        ax.text(x + 0.15, y + height / 2 + 0.11, step, va="center", weight="bold", size=9.5)
        ax.text(x + 0.15, y + height / 2 - 0.12, what, va="center", color=MUTED, size=8.2)
        ax.text(
            x + width - 0.15,
            y + height / 2 + 0.11,
            room,
            ha="right",
            va="center",
            color=MUTED,
            size=8.5,
        )
        if row + 1 < len(STEPS):
            arrow(ax, (x + width / 2, y), (x + width / 2, y - pitch + height))
    ax.text(x, full + 0.16, "From a command to a result", weight="bold", size=11)


def main() -> None:
    figure = Figure(figsize=(10.4, 6.0), facecolor=PAPER)
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    ax.set_xlim(-0.1, 12.7)
    ax.set_ylim(-0.15, len(ROOMS) * 0.68 + 0.5)
    ax.axis("off")
    rooms(ax)
    path(ax)
    for text in ax.texts:
        text.set_fontfamily("DejaVu Sans")
    figure.savefig(sys.argv[1], dpi=150)


if __name__ == "__main__":
    main()
