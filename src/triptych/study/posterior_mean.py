"""Tweedie's formula by noise level: the error of the posterior mean that a model's score implies."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from triptych.study.compare import Comparison
from triptych.study.curves import GAMMA, mean_over_seeds
from triptych.study.figures import Colours
from triptych.study.style import INK, MARKERS, axes, end_labels, inches, plain_ticks, shortened


def posterior_mean_error(comparison: Comparison, colours: Colours) -> Figure | None:
    """Squared error of the posterior mean against the true one, per dimension, by noise level."""
    curves = {c.label: [r.tweedie for r in c.runs.values() if r.tweedie] for c in comparison.cells}
    cells = {label: curve for label, seeds in curves.items() if (curve := mean_over_seeds(seeds))}
    # an oracle's error is rounding, decades below everything: it would flatten the others
    means = {label: (gamma, mean) for label, (gamma, mean, _) in cells.items() if np.max(mean) > 1e-8}
    if not means:
        return None
    names = shortened(list(means))
    figure, ax = axes(5.6, 3.5, 0.78, inches(list(names.values())) + 0.4)
    ends = []
    for label, (gamma, mean) in means.items():
        marker = MARKERS[list(colours).index(label) % len(MARKERS)]
        ax.plot(gamma, mean, color=colours[label], marker=marker, markersize=3, linewidth=1.6)
        ends.append((float(mean[-1]), names[label], colours[label]))
    spread = next(run.posterior for cell in comparison.cells for run in cell.runs.values() if run.posterior)
    ax.plot(spread.gamma, spread.value, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    ax.set_yscale("log")
    plain_ticks(ax.yaxis)
    ax.set_xlabel(GAMMA)
    ax.set_ylabel("squared error, per dimension")
    end_labels(ax, ends)
    return figure
