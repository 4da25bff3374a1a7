"""Panels of the report: each has a title, an explanation, and functions that draw it."""

from matplotlib.figure import Figure


def psnr(comparison, colours) -> Figure | None:
    """Draw each seed's PSNR, with one row per setting."""
    cells = [(cell, list(cell.values(part="metric/psnr").values())) for cell in comparison.cells]
    if not any(values for _, values in cells):
        return None
    figure = Figure(figsize=(7.2, 0.8 + 0.36 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    for row, (cell, values) in enumerate(cells):
        axes.scatter(values, [row] * len(values), color=colours[cell.label])
    axes.set_yticks(range(len(cells)), [cell.label for cell, _ in cells])
    axes.invert_yaxis()
    axes.set_xlabel("PSNR at log SNR = 0, decibels (higher is better)")
    return figure


PANELS = [
    (
        "How well noise is taken out",
        "Dots are seeds: the test pictures had back from noise.",
        (psnr,),
    ),
]
