"""Measure how often the intervals of a report miss the truth, and how near their forecast is.

    python benchmarks/intervals.py [DRAWS]

Five settings make ten pairs. All ten intervals have one level (Bonferroni), so whether one misses
does not depend on the true means. If these are equal, a miss is a false "clear of".

The forecast is the half-width that an interval is expected to have at twice and four times the
seeds, of which the present ones are a part.
"""

from itertools import combinations

import numpy as np
from comparison import BATCH, DRAWS, ITEMS, estimates, table
from record import record

from triptych.study.statistics import ALPHA, MeanError, Paired

SEEDS = (2, 3, 4, 5, 7, 10)
RATIOS = (0.03, 0.3, 3.0, 30.0)  # variance through seeds over variance through items
SPREADS = {  # standard deviations of the five settings over seeds
    "equal": (1, 1, 1, 1, 1),
    "one 5 times": (1, 1, 1, 1, 5),
    "one a fifth": (1, 1, 1, 1, 0.2),
}
PAIRS = [*combinations(range(5), 2)]
LEVEL = ALPHA / len(PAIRS)


def deviations(random, kind, shape):
    """Draw deviations of seeds from their setting's mean."""
    if kind == "normal":
        return random.normal(size=shape)
    if kind == "t3":
        return random.standard_t(3, size=shape)
    return np.exp(random.normal(size=shape)) - np.exp(0.5)  # log-normal


def misses_over_seeds(random, kind, spreads, seeds):
    """Return the share of reports in which an interval over seeds misses."""
    bounds = np.array(spreads)[:, None] * deviations(random, kind, (DRAWS, 5, seeds))
    missed = np.zeros(DRAWS, bool)
    for first, second in PAIRS:
        d = bounds[:, second] - bounds[:, first]
        missed |= MeanError(d.var(1, ddof=1) / seeds, seeds - 1).p(d.mean(1)) <= LEVEL
    return missed.mean()


def misses_over_items(random, seeds, ratio):
    """Return the share of reports in which an interval over seeds and items misses."""
    missed = 0
    for _ in range(DRAWS // BATCH):
        bounds = table(random, (BATCH, 5), seeds, ratio, 1.0)
        miss = np.zeros(BATCH, bool)
        for first, second in PAIRS:
            mean, a, b, _ = estimates(bounds[:, second] - bounds[:, first])
            miss |= MeanError(a, seeds - 1, b, ITEMS).p(mean) <= LEVEL
        missed += miss.sum()
    return missed / (DRAWS // BATCH * BATCH)


def forecast(random, kind, seeds, factor):
    """Return the share of intervals wider than expected, and limits of 80% of width / expected."""
    more = factor * seeds
    bounds = deviations(random, kind, (DRAWS, 2, more))
    d = bounds[:, 1] - bounds[:, 0]
    # A half-width over seeds alone is proportional to the standard deviation.
    expected = Paired(0.0, seeds, MeanError(1 / seeds, seeds - 1)).expected_half_width(more, LEVEL)
    width = MeanError(d.var(1, ddof=1) / more, more - 1).critical(LEVEL)
    ratio = width / (expected * d[:, :seeds].std(1, ddof=1))
    return [np.mean(ratio > 1), *np.quantile(ratio, (0.1, 0.9))]


def forecast_with_items(random, seeds, factor, ratio):
    """Return the same as `forecast` for intervals over seeds and items."""
    more = factor * seeds
    ratios = []
    for _ in range(max(DRAWS // 10 // BATCH, 1)):
        d = table(random, (BATCH,), more, ratio, 0.0)
        _, a, b, _ = estimates(d[:, :seeds])
        _, later_a, later_b, _ = estimates(d)
        widths = MeanError(later_a, more - 1, later_b, ITEMS).critical(LEVEL)
        for width, seed_variance, item_variance in zip(widths, a, b, strict=True):
            error = MeanError(seed_variance, seeds - 1, item_variance, ITEMS)
            ratios.append(width / Paired(0.0, seeds, error).expected_half_width(more, LEVEL))
    return [np.mean(np.array(ratios) > 1), *np.quantile(ratios, (0.1, 0.9))]


def main():
    random = np.random.default_rng(2029)
    missed, widths = {}, {}
    for kind in ("normal", "t3", "log-normal"):
        for name, spreads in SPREADS.items():
            shares = [misses_over_seeds(random, kind, spreads, seeds) for seeds in SEEDS]
            missed[f"{kind}, spread {name}"] = shares
            print(f"| {kind}, {name} | " + " | ".join(f"{s:.1%}" for s in shares), flush=True)
    for ratio in RATIOS:
        shares = [misses_over_items(random, seeds, ratio) for seeds in SEEDS]
        missed[f"items, ratio {ratio:g}"] = shares
        print(f"| items, {ratio:g} | " + " | ".join(f"{s:.1%}" for s in shares), flush=True)
    for seeds in (2, 3, 5, 10):
        for factor in (2, 4):
            rows = {
                kind: forecast(random, kind, seeds, factor)
                for kind in ("normal", "t3", "log-normal")
            }
            rows["items, ratio 0.3"] = forecast_with_items(random, seeds, factor, 0.3)
            for kind, row in rows.items():
                widths[f"{kind}, {seeds} seeds, {factor} times"] = row
                print(f"{kind}, {seeds} seeds, {factor} times: {np.round(row, 2)}", flush=True)
    figures = {"draws": DRAWS, "seeds": SEEDS, "a miss": missed, "wider, 10%, 90%": widths}
    record("intervals", {}, figures)


if __name__ == "__main__":
    main()
