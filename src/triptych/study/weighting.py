"""Find losses that hardly train the noise levels on which much of the bound depends."""

import numpy as np
from scipy.special import expit

from triptych.run.parsing import Curve
from triptych.study.comparison import Comparison

LITTLE = 0.1  # a level with a smaller weight, relative to the bound's, is hardly trained
MUCH = 0.25  # a loss neglects the bound if hardly trained levels make at least this share of it


def neglects_bound(weighting: Curve) -> bool:
    """Return whether a loss hardly trains noise levels that make up much of the bound.

    Loss and bound have the integrands w(gamma) e(gamma) and e(gamma). As in
    `Objective.effective_share`, e is the error of the best linear denoiser for data of unit
    variance, 1 / (1 + e^gamma). The weight w is scaled so that both integrals are equal.
    """
    weight = np.array(weighting.value)
    error = expit(-np.array(weighting.gamma))
    hardly_trained = weight * error.sum() < LITTLE * (weight * error).sum()
    return bool(error[hardly_trained].sum() >= MUCH * error.sum() > 0)


def neglecting_settings(comparison: Comparison) -> list[str]:
    """Return the settings whose loss hardly trains noise levels that make up much of the bound."""
    labels = []
    for cell in comparison.cells:
        curves = [run.weighting for run in cell.runs.values() if run.weighting]
        if any(map(neglects_bound, curves)):
            labels.append(cell.label)
    return labels
