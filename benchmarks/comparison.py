"""Check the error rates of the report's comparisons, with 10,000 draws each.

    python benchmarks/comparison.py [DRAWS]

It prints the tables of docs/comparing.md. Draws follow D[s, i] = mu + a_s + b_i + e_si. `ratio` is
the variance of the mean that is due to seeds over that due to items; `rest` is the variance of the
interaction over the larger of the variances of a single seed and a single item.
"""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
from scipy.special import stdtr

from triptych.study.statistics import MeanError, crossed_mean_error, holm, mean_squares

DRAWS = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
RATIOS = (0.03, 0.3, 1.0, 3.0, 10.0, 100.0, 1e6)
ITEMS, BATCH = 297, 100


def table(random, shape, seeds, ratio, rest, kind="normal"):
    """Draw differences or bounds (*shape, seeds, ITEMS).

    The variance of the mean is close to one for three seeds.
    """
    by_seed, by_item = 3 * ratio / (1 + ratio), ITEMS / (1 + ratio)
    spread = np.sqrt(rest * max(by_seed, by_item))
    draw = random.normal
    if kind == "skewed":  # seeds with five degrees of freedom, items one-sided
        a = random.standard_t(5, size=(*shape, seeds, 1)) / np.sqrt(5 / 3)
        b = random.exponential(size=(*shape, 1, ITEMS)) - 1
    else:
        a, b = draw(size=(*shape, seeds, 1)), draw(size=(*shape, 1, ITEMS))
    total = np.sqrt(by_seed) * a + np.sqrt(by_item) * b
    return total + spread * draw(size=(*shape, seeds, ITEMS)) if rest else total


def estimates(d):
    """Return the mean, the parts of its variance due to seeds and items, and that of the rest."""
    s, i = d.shape[-2:]
    seeds, items, rest = mean_squares(d)
    return d.mean((-2, -1)), seeds / (s * i), np.maximum(items - rest, 0) / (s * i), rest / (s * i)


def satterthwaite(mean, a, b, rest, s, i):
    """Return the p-value of the textbook's method, for comparison."""
    both = a + b
    df = both**2 / (a**2 / (s - 1) + (b + rest) ** 2 / (i - 1) + rest**2 / ((s - 1) * (i - 1)))
    return 2 * stdtr(np.maximum(df, 0.5), -np.abs(mean) / np.sqrt(both))


def coverage(random):
    print("\n| seeds | rest | " + " | ".join(f"{r:g}" for r in RATIOS) + " |")
    for s in (3, 5, 10):
        for rest, kind in ((0.0, "normal"), (1.0, "normal"), (1.0, "skewed")):
            row, small, book = [], [], []
            for ratio in RATIOS:
                covered = errs = textbook = 0
                for _ in range(DRAWS // BATCH):
                    mean, a, b, left = estimates(table(random, (BATCH,), s, ratio, rest, kind))
                    p = MeanError(a, s - 1, b, ITEMS).p(mean)
                    covered += (p >= 0.05).sum()
                    errs += (p <= 0.005).sum()
                    textbook += (satterthwaite(mean, a, b, left, s, ITEMS) <= 0.005).sum()
                row.append(f"{covered / DRAWS:.1%}")
                small.append(f"{errs / DRAWS:.2%}")
                book.append(f"{textbook / DRAWS:.2%}")
            print(f"| {s} | {rest:g} {kind} | coverage " + " | ".join(row))
            print(f"| {s} | {rest:g} {kind} | errs at .5% " + " | ".join(small))
            print(f"| {s} | {rest:g} {kind} | Satterthwaite at .5% " + " | ".join(book), flush=True)


def pairs_p(bounds, s):
    """Return the p-values and mean differences of all pairs of cells over the first s seeds.

    (draws, pairs) each.
    """
    pairs = []
    for i, j in combinations(range(bounds.shape[1]), 2):
        mean, a, b, _ = estimates(bounds[:, j, :s] - bounds[:, i, :s])
        pairs.append((MeanError(a, s - 1, b, ITEMS).p(mean), mean))
    return np.stack([p for p, _ in pairs], 1), np.stack([m for _, m in pairs], 1)


def false_claims(random):
    print(
        "\nno true difference, 5 settings, 3 seeds, 297 items, two measures at three values "
        "(70 claims)"
    )
    for ratio in RATIOS:
        single = any_ = bare = 0
        for _ in range(DRAWS // BATCH):
            p, _ = pairs_p(table(random, (BATCH, 5), 3, ratio, 1.0), 3)
            sampled = random.normal(size=(BATCH, 5, 3, 6))
            others = []
            for i, j in combinations(range(5), 2):
                d = sampled[:, j] - sampled[:, i]
                t = d.mean(1) / (d.std(1, ddof=1) / np.sqrt(3))
                others.append(2 * stdtr(2, -np.abs(t)))
            q = np.concatenate(others, 1)
            weights = [0.5 / 10] * 10 + [0.5 / 60] * 60
            for k in range(BATCH):
                single += min(holm(list(p[k]))) <= 0.05
                any_ += min(holm([*p[k], *q[k]], weights)) <= 0.05
            bare += ((p.min(1) <= 0.05) | (q.min(1) <= 0.05)).sum()
        print(
            f"| {ratio:g} | {single / DRAWS:.2%} | {any_ / DRAWS:.2%} | {bare / DRAWS:.1%} |",
            flush=True,
        )


GROUPS = {
    "75 of 4": [4] * 75,
    "30 of 10": [10] * 30,
    "50 of 2, 10 of 20": [2] * 50 + [20] * 10,
    "100, 50, 25, 12, 6": [100, 50, 25, 12, 6],
}


def grouped_items(random):
    print("\nno true difference, 5 settings, items in groups of correlation .5, 10 claims")
    for name, sizes in GROUPS.items():
        groups = np.repeat(np.arange(len(sizes)), sizes)
        for s in (3, 5):
            row = []
            for ratio in (0.03, 0.3, 3.0):
                told = np.zeros(2)
                for _ in range(DRAWS // BATCH):
                    p = grouped_items_p(random, groups, s, ratio)
                    told += [(method.min(1) * 10 <= 0.05).sum() for method in p]
                row += [f"{share:.1%}" for share in told / (DRAWS // BATCH * BATCH)]
            print(f"| {name} | {s} | " + " | ".join(row) + " |", flush=True)


def grouped_items_p(random, groups, s, ratio):
    """Return p of all pairs over groups, and over items taken as independent, (BATCH, 10) each."""
    i = len(groups)
    shared = random.normal(size=(BATCH, 5, 1, groups.max() + 1))[..., groups]
    of_items = np.sqrt(i / (1 + ratio) / 2) * (shared + random.normal(size=(BATCH, 5, 1, i)))
    bounds = of_items + np.sqrt(3 * ratio / (1 + ratio)) * random.normal(size=(BATCH, 5, s, 1))
    over_groups, over_items = [], []
    for first, second in combinations(range(5), 2):
        d = bounds[:, second] - bounds[:, first]
        mean = d.mean((1, 2))
        over_groups.append(crossed_mean_error(d, groups).p(mean))
        over_items.append(crossed_mean_error(d).p(mean))
    return np.stack(over_groups, 1), np.stack(over_items, 1)


def until_decided(random):
    """Check the error rates of until=decided: all looks at all pairs.

    This section takes longest.
    """
    for sizes in ((3, 5, 8, 12), (3, 4, 6, 8, 10, 12, 14, 16)):
        print(
            f"\nno true difference, until=decided, seeds {sizes}: with the share of the "
            "level, and without"
        )
        for ratio in (0.3, 3.0, 1e6):
            claimed = naive = 0
            for _ in range(DRAWS // BATCH):
                bounds = table(random, (BATCH, 5), sizes[-1], ratio, 1.0)
                seen = [pairs_p(bounds, s) for s in sizes]
                for k in range(BATCH):
                    ever = bare = False
                    for look in range(len(sizes)):
                        now = seen[look][1][k]
                        p = np.ones(10)
                        for before, mean in seen[: look + 1]:
                            agree = mean[k] * now > 0
                            p = np.where(agree, np.minimum(p, len(sizes) * before[k]), p)
                        ever |= min(holm(list(np.minimum(p, 1)))) <= 0.05
                        bare |= min(holm(list(seen[look][0][k]))) <= 0.05
                    claimed, naive = claimed + ever, naive + bare
            print(f"| {ratio:g} | {claimed / DRAWS:.2%} | {naive / DRAWS:.2%} |", flush=True)


if __name__ == "__main__":
    generator = np.random.default_rng(2026)
    print(f"{DRAWS} draws")
    coverage(generator)
    false_claims(generator)
    until_decided(np.random.default_rng(2027))
    grouped_items(np.random.default_rng(2028))
