"""Find losses that train other noise levels than the bound judges."""

import numpy as np
from scipy.special import expit

from triptych.run.parsing import Curve
from triptych.study.comparison import Comparison

LITTLE = 0.1  # a smaller weight, relative to that of the bound, trains a level hardly
MUCH = 0.25  # share of the bound at such levels from which on it judges something else


def neglects_bound(weighting: Curve) -> bool:
    """Return whether a loss hardly trains the levels that much of the bound is from.

    Loss and bound have the integrands w(gamma) e(gamma) and e(gamma). As in
    `Objective.effective_share`, e is the error of the best linear denoiser for data of unit
    variance, 1 / (1 + e^gamma). A weight is relative if both integrals are equal.
    """
    weight = np.array(weighting.value)
    error = expit(-np.array(weighting.gamma))
    hardly_trained = weight * error.sum() < LITTLE * (weight * error).sum()
    return bool(error[hardly_trained].sum() >= MUCH * error.sum() > 0)


def neglecting_settings(comparison: Comparison) -> list[str]:
    """Return the settings whose loss hardly trains the levels that much of the bound is from."""
    labels = []
    for cell in comparison.cells:
        curves = [run.weighting for run in cell.runs.values() if run.weighting]
        if any(map(neglects_bound, curves)):
            labels.append(cell.label)
    return labels
