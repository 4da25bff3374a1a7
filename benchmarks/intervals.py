"""Measure how often the intervals of a report miss the truth, with 10,000 draws each.

    python benchmarks/intervals.py [DRAWS]

Five settings make ten pairs, and each pair's interval is at the level at which Holm's test decides
on it. Draws are those of comparison.py, with an interaction of items and seeds. Settings are equal,
or one or two are far from the others, or each is farther than the one before: the more differences
Holm's test finds, the narrower its intervals are.
"""

from itertools import combinations

import numpy as np
from comparison import BATCH, DRAWS, ITEMS, estimates, table
from record import record

from triptych.study.statistics import ALPHA, MeanError, holm

RATIOS = (0.03, 0.3, 3.0, 30.0, 1e6)
TRUTHS = {  # true means, in standard errors of a mean over three seeds
    "five equal": (0, 0, 0, 0, 0),
    "one apart": (0, 0, 0, 0, 1e3),
    "two apart": (0, 0, 0, 1e3, 2e3),
    "ever farther": (0, 1e2, 1e4, 1e6, 1e8),
}


def misses(random, means, seeds, ratio):
    """Return which intervals of the pairs miss the true difference, (BATCH, 10)."""
    noise = table(random, (BATCH, 5), seeds, ratio, 1.0)
    p_of_zero, p_of_truth = [], []
    for first, second in combinations(range(5), 2):
        error, a, b, _ = estimates(noise[:, second] - noise[:, first])
        spread = MeanError(a, seeds - 1, b, ITEMS)
        p_of_zero.append(spread.p(error + means[second] - means[first]))
        p_of_truth.append(spread.p(error))
    levels = [holm_levels(p) for p in np.stack(p_of_zero, 1)]
    return np.stack(p_of_truth, 1) < np.stack(levels)


def holm_levels(p_values):
    """Return the level that each uncorrected p has to reach, as Holm's steps leave it."""
    corrected = np.asarray(holm([*p_values]))
    first_step = ALPHA / len(p_values)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = ALPHA * p_values / corrected
    # The factor of the correction is unknown if p was limited to 1, or is 0.
    return np.where((corrected < 1) & (corrected > 0), level, first_step)


def main():
    random = np.random.default_rng(2029)
    figures = {}
    for name, means in TRUTHS.items():
        for seeds in (3, 5):
            for ratio in RATIOS:
                batches = [misses(random, means, seeds, ratio) for _ in range(DRAWS // BATCH)]
                missed = np.concatenate(batches)
                single, together = missed.mean(), missed.any(1).mean()
                figures[f"{name}, {seeds} seeds, ratio {ratio:g}"] = [single, together]
                print(
                    f"{name}, {seeds} seeds, ratio {ratio:g}: {single:.2%}, any {together:.2%}",
                    flush=True,
                )
    record("intervals", {}, {"draws": DRAWS, "missed, one and any": figures})


if __name__ == "__main__":
    main()
