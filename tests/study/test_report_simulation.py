"""Check the report's intervals, claims and power by simulation with a known truth.

Each tolerance is the binomial's: a correct promise fails here once in 10,000 seeds, and the seed is
fixed.
"""

from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import fixed_quad

from triptych.study import verdict
from triptych.study.cells import DecisionRule, PairTest
from triptych.study.claims import may_settle, seeds_to_try
from triptych.study.statistics import (
    ItemDifferences,
    MeanError,
    Paired,
    crossed_mean_error,
    mean_squares,
    paired,
)

from .simulate import RARE, RATIOS, Memory, at_most, bounds, claims_in_words


def at_least(hits: int, n: int, share: float) -> bool:
    return hits >= stats.binom.ppf(RARE, n, share)


def crossed_effects(
    random, n: int, seeds: int, items: int, by_seed: float, by_item: float
) -> np.ndarray:
    of_seeds, of_items = random.normal(size=(n, seeds, 1)), random.normal(size=(n, 1, items))
    return np.sqrt(by_seed) * of_seeds + np.sqrt(by_item) * of_items


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("rest", [0.0, 1.0])
def test_crossed_intervals_have_nominal_coverage(seeds, ratio, rest):
    random, n, items = np.random.default_rng([seeds, int(ratio * 10) % 997, int(rest)]), 1500, 60
    by_seed, by_item = (3 * ratio / (1 + ratio), items / (1 + ratio))
    spread = np.sqrt(rest * max(by_item, by_seed))
    d = crossed_effects(random, n, seeds, items, by_seed, by_item)
    d = d + spread * random.normal(size=(n, seeds, items))
    mean, error = d.mean((1, 2)), crossed_mean_error(d)
    p = error.p(mean)
    covered = int((p >= 0.05).sum())  # within critical(.05)
    assert at_least(covered, n, 0.95) and at_most(covered, n, 0.98), covered / n
    for level in (0.05, 0.005):
        assert at_most(int((p <= level).sum()), n, level), level


@pytest.mark.parametrize("df", [1, 2, 4, 11])
def test_crossed_error_reduces_to_student_t(df):
    x = np.array([0.5, 2.0, 8.0, 30.0])
    error = MeanError(np.array([1e-3, 1.0, 1e3]), df, 1.0, 297)
    for alpha in (0.05, 1e-4):
        assert error.p(error.critical(alpha)) == pytest.approx(alpha, rel=1e-6)
    # A vanishing share of the items still goes through the quadrature.
    assert MeanError(1.0, df, 1e-12, 10**9).p(x) == pytest.approx(2 * stats.t.sf(x, df), rel=1e-3)
    assert MeanError(1e-14, df, 1.0, 297).p(x[:2]) == pytest.approx(
        2 * stats.t.sf(x[:2], 296), rel=1e-6
    )
    assert MeanError(1.0, df).critical(0.05) == pytest.approx(stats.t.ppf(0.975, df))


@pytest.mark.parametrize("df", [1, 2, 4, 29])
@pytest.mark.parametrize("items", [20, 5000])
@pytest.mark.parametrize("distance", [1.0, 5.0, 30.0, 300.0])
def test_crossed_p_is_the_integral_far_into_its_tail(df, items, distance):
    """E[P(|t| > x / sqrt(A* + B))] over chi-square, by Gauss's quadrature in parts of the log of it."""
    seeds = 0.2

    def part(u):
        density = stats.chi2.pdf(df * np.exp(u), df) * df * np.exp(u)
        return density * 2 * stats.t.sf(distance / np.sqrt(seeds / np.exp(u) + 1), items - 1)

    # Wider than the nodes: exp(-100) of a quantile at the one end, a density of 0 at the other.
    edges = np.linspace(-200 / df, np.log(10 + 800 / df), 60)
    truth = sum(fixed_quad(part, a, b, n=40)[0] for a, b in pairwise(edges))
    assert MeanError(seeds, df, 1.0, items).p(distance) == pytest.approx(truth, rel=2e-6, abs=1e-25)


def test_crossed_error_of_single_item_is_paired_t_test():
    d = np.random.default_rng(0).normal(size=(4, 1))
    error = crossed_mean_error(d)
    assert error.p(d.mean()) == pytest.approx(stats.ttest_1samp(d[:, 0], 0).pvalue, rel=1e-9)


def test_crossed_variance_estimate_is_unbiased():
    """E(MS_seeds + MS_items - MS_rest) / (S I) is the variance of the mean."""
    random = np.random.default_rng(1)
    d = crossed_effects(random, 4000, 4, 20, 0.09, 1.0) + random.normal(size=(4000, 4, 20))
    seeds, items, rest = mean_squares(d)
    truth = 0.09 / 4 + 1 / 20 + 1 / 80
    estimate = (seeds + items - rest).mean() / 80
    assert estimate == pytest.approx(truth, rel=0.03)
    assert d.mean((1, 2)).var() == pytest.approx(truth, rel=4 * np.sqrt(2 / 4000))


@pytest.fixture
def no_advice(monkeypatch):
    """Skip the advice on seeds, which claims nothing and takes most of a report's time."""
    monkeypatch.setattr(verdict, "_expected_interval_text", lambda open_claims: "")


def test_false_claims_occur_in_at_most_5_percent_of_reports(no_advice):
    random, n, told = np.random.default_rng(2), 150, 0
    for k in range(n):
        table = bounds(random, [2.0] * 5, 3, 297, RATIOS[k % len(RATIOS)], rest=k % 2)
        sampled = 0.3 + 0.02 * random.normal(size=(5, 3, 6))  # two measures at three values
        found = Memory(table, sampled).compare()
        assert found.tests == 10 + 2 * 3 * 10
        told += bool(claims_in_words(found))
    assert at_most(told, n, 0.05), told / n
    apart = Memory(bounds(random, [2.0, 3.0], 3, 297, 1.0)).compare()
    assert len(claims_in_words(apart)) == 2, "a sentence and a row: these words are looked for"


def sampler_sweep(random, skewed: bool, seeds: int, values: int) -> Memory:
    """Return runs of five equal samplers, of one network a seed, with one measure of samples.

    The network's part of a measure is common to the samplers of a seed. What a sampler adds is
    normal, or chi-square with one degree of freedom.
    """
    size = (5, seeds, values)
    own = random.chisquare(1, size=size) if skewed else random.normal(size=size)
    network = 3 * random.normal(size=(1, seeds, 1))
    bound = 2 + 0.1 * random.normal(size=(1, seeds, 1))
    unmeasured = np.full(size, np.nan)  # Memory's other measure
    figures = np.concatenate([network + own, unmeasured], -1)
    return Memory(np.broadcast_to(bound, (5, seeds, 1)), figures, axis="sampler")


@pytest.mark.parametrize(
    "n", [pytest.param(300, id="few"), pytest.param(5000, id="many", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("values", [1, 3])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("skewed", [False, True], ids=["normal", "skewed"])
def test_false_claims_of_sampler_sweeps_occur_in_at_most_5_percent(
    no_advice, skewed, seeds, values, n
):
    """Of 10,000 reports 4.7% to 5.2% claim a difference of normal measures, 0.8% to 1.9% of skewed.

    All pairs count at all values of the key, as they stand in the page. Verdict and table, which
    name the best alone, claim one in at most 3.5%.
    """
    random, told = np.random.default_rng([seeds, values, int(skewed)]), 0
    for _ in range(n):
        found = sampler_sweep(random, skewed, seeds, values).compare()
        assert found.deciding and found.tests == 10 * values
        told += any(claim.is_significant for claim in found.claims.values())
    assert at_most(told, n, 0.05), told / n


def numbered(sizes) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("size", [4, 10])
def test_false_claims_with_items_in_groups_occur_in_at_most_5_percent_of_reports(no_advice, size):
    random, n, groups = np.random.default_rng([7, size]), 150, numbered([size] * (300 // size))
    told = {"groups": 0, "independent": 0}
    for k in range(n):
        seeds, ratio = (3, 5)[k % 2], (0.03, 0.3, 3.0)[k % 3]
        table = bounds(random, [2.0] * 5, seeds, len(groups), ratio, rest=0.0, groups=groups)
        told["groups"] += bool(claims_in_words(Memory(table, groups=groups).compare()))
        told["independent"] += bool(claims_in_words(Memory(table).compare()))
    assert at_most(told["groups"], n, 0.05), told
    assert not at_most(told["independent"], n, 0.05), "what the groups are for"


@pytest.mark.parametrize("correlation", [0.05, 0.5, 1.0])
@pytest.mark.parametrize(
    "sizes",
    [
        [4] * 75,
        [10] * 30,
        [2] * 50 + [20] * 10,
        [5] * 20 + [50],
        [100, 50, 25, 12, 6],
        [5] * 20 + [2000],
    ],
    ids=str,
)
def test_groups_of_any_sizes_keep_the_level(sizes, correlation):
    random, groups = np.random.default_rng([8, len(sizes), sizes[-1]]), numbered(sizes)
    parts, n = [], 100
    for _ in range(20):  # new memory for all tables at once takes longer than the figures
        share = random.normal(size=(n, 1, len(sizes)))[..., groups]
        own = random.normal(size=(n, 1, len(groups)))
        seeds = 0.01 * random.normal(size=(n, 5, 1))
        d = np.sqrt(correlation) * share + np.sqrt(1 - correlation) * own + seeds
        parts.append(crossed_mean_error(d, groups).p(d.mean((1, 2))))
    p = np.concatenate(parts)
    for level in (0.05, 0.005):
        assert at_most(int((p <= level).sum()), len(p), level), level


def test_groups_of_one_item_are_independent_items():
    d = np.random.default_rng(9).normal(size=(3, 40))
    plain, grouped = crossed_mean_error(d), crossed_mean_error(d, np.arange(40)[::-1])
    assert grouped.n_items == pytest.approx(40)
    assert grouped.seed_variance == pytest.approx(plain.seed_variance)
    assert grouped.item_variance == pytest.approx(plain.item_variance)


def test_half_of_alpha_is_reserved_for_bound_comparison():
    """Half of the 5% belongs to the question: beside six other tests p = .01 is enough.

    So it is for the margin.
    """
    table = np.array([[[2.0], [2.1], [2.2]], [[2.05], [2.16], [2.27]]]).repeat(9, 2)
    sampled = np.random.default_rng(6).normal(size=(2, 3, 6))
    found = Memory(table, sampled).compare(DecisionRule(equal_within=1e9))
    claim, other = found.pair_test(0, 1), found.metric_test("precision", 0, "a", "b")
    assert (
        claim.pair.p > 0.05 / 7
        and claim.p == pytest.approx(2 * claim.pair.p)
        and claim.is_significant
    )
    assert claim.equal and not other.equal


def test_repeated_looks_keep_false_claims_at_most_5_percent(no_advice):
    random, n, told = np.random.default_rng(3), 60, 0
    sizes = (3, 5, 7, 9, 12)
    for k in range(n):
        memory = Memory(bounds(random, [2.0] * 3, sizes[-1], 40, RATIOS[k % len(RATIOS)]))
        seen, ever = (), False
        for size in sizes:
            seen = (*seen, frozenset(range(size)))
            found = memory.compare(DecisionRule(looks=len(sizes), seen=seen), range(size))
            ever |= bool(claims_in_words(found))
        told += ever
    assert at_most(told, n, 0.05), told / n


def test_equivalence_is_claimed_falsely_in_at_most_5_percent():
    random, n, told, held = np.random.default_rng(4), 150, 0, 0
    for k in range(n):
        for gap in (0.02, 0.0):
            d = bounds(random, [2.0, 2.0 + gap], 8, 100, RATIOS[k % len(RATIOS)], sd=0.004)
            claim = Memory(d).compare(DecisionRule(equal_within=0.02)).pair_test(0, 1)
            told, held = told + (gap > 0 and claim.equal), held + (gap == 0 and claim.equal)
    assert at_most(told, n, 0.05) and held > 0.6 * n, (told, held)


def test_following_the_advice_once_keeps_false_claims_at_most_5_5_percent(no_advice):
    """A report at the full 5%; if it is open, until=decided goes on to 12 seeds."""
    random, n, told, sizes = np.random.default_rng(8), 200, 0, (3, 5, 8, 12)
    for _ in range(n):
        memory = Memory(bounds(random, [2.0, 2.0], sizes[-1], 1, 1e6))
        ever, seen = bool(claims_in_words(memory.compare(None, range(3)))), ()
        for size in sizes:
            seen = (*seen, frozenset(range(size)))
            rule = DecisionRule(looks=len(sizes), seen=seen, reported=True)
            ever |= bool(claims_in_words(memory.compare(rule, range(size))))
        told += ever
    assert at_most(told, n, 0.055), told / n


def test_looks_after_a_report_share_a_tenth_of_its_error():
    three, five = frozenset({1, 2, 3}), frozenset({1, 2, 3, 4, 5})
    rule = DecisionRule(looks=4, seen=(three, five), reported=True)
    assert [rule.p_factor(look) for look in range(4)] == [1, 30, 30, 30]
    assert sum(0.05 / rule.p_factor(look) for look in range(4)) == pytest.approx(0.055)
    assert DecisionRule(looks=4).current_p_factor == 4 and DecisionRule().current_p_factor == 1
    assert DecisionRule(looks=4, reported=True).current_p_factor == 30, "of a joint report"


def deviations(random, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw deviations of seeds from their setting's mean."""
    if kind == "normal":
        return random.normal(size=shape)
    if kind == "t3":
        return random.standard_t(3, size=shape)
    return np.exp(random.normal(size=shape)) - np.exp(0.5)  # log-normal


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(
    ("kind", "spread", "most"),
    [("normal", 1, 0.05), ("normal", 5, 0.05), ("t3", 1, 0.05), ("t3", 5, 0.05),
     ("log-normal", 1, 0.05), ("log-normal", 5, 0.1), ("log-normal", 0.2, 0.2)],
)  # fmt: skip
def test_all_intervals_of_a_report_miss_in_at_most_5_percent(kind, spread, most, seeds):
    """Of ten pairs of five settings; `spread`: that of the last setting, relative to the others.

    If the settings are equal, a miss is a false "clear of". The exception, two laws of log-normal
    errors, is that of the report's footnote and of docs/comparing.md.
    """
    random, n = np.random.default_rng([seeds, int(10 * spread), len(kind)]), 4000
    bounds = deviations(random, kind, (n, 5, seeds))
    bounds[:, 4] *= spread
    missed = np.zeros(n, bool)
    for first, second in combinations(range(5), 2):
        d = bounds[:, second] - bounds[:, first]
        missed |= MeanError(d.var(1, ddof=1) / seeds, seeds - 1).p(d.mean(1)) <= 0.05 / 10
    assert at_most(int(missed.sum()), n, most), missed.mean()
    if most > 0.05 and seeds == 10:
        assert not at_most(int(missed.sum()), n, 0.05), "the exception is one"


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(
    ("kind", "spread", "most"),
    [("normal", 5, 0.05), ("t3", 5, 0.05), ("log-normal", 1, 0.05), ("log-normal", 5, 0.21)],
)
def test_a_difference_of_the_margin_is_the_same_in_at_most_5_percent(kind, spread, most, seeds):
    """The exception is that of docs/comparing.md: a setting that is skewed and spreads more."""
    random, n, margin = np.random.default_rng([seeds, spread, len(kind)]), 4000, 3.0
    d = spread * deviations(random, kind, (n, seeds)) - deviations(random, kind, (n, seeds))
    p = []
    for difference in (margin, -margin):
        mean = d.mean(1) + difference
        distance = margin - np.abs(mean)
        half = MeanError(d.var(1, ddof=1) / seeds, seeds - 1).p(distance) / 2
        p.append(np.where(distance > 0, half, 1 - half))
    false = max(int((side <= 0.05).sum()) for side in p)
    assert at_most(false, n, most), false / n


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("kind", ["normal", "t3", "log-normal"])
def test_half_of_later_intervals_are_wider_than_expected(kind, factor, seeds):
    """Exactly half of normal ones; up to 60% of others, as later seeds bring larger outliers."""
    random, n, more = np.random.default_rng([seeds, factor, len(kind)]), 4000, factor * seeds
    later = deviations(random, kind, (n, more)) - deviations(random, kind, (n, more))
    # Over seeds alone, all half-widths are proportional to the standard deviation.
    one = Paired(0.0, seeds, MeanError(1 / seeds, seeds - 1))
    expected = one.expected_half_width(more, 0.005) * later[:, :seeds].std(1, ddof=1)
    width = stats.t.ppf(1 - 0.0025, more - 1) * stats.sem(later, axis=1)
    wider = int((width > expected).sum())
    assert at_least(wider, n, 0.5) and at_most(wider, n, 0.5 if kind == "normal" else 0.6), wider


def test_expected_interval_with_items_keeps_their_share():
    """Half of the intervals are wider where both matter; where items alone do, none shrinks."""
    random, n, wider = np.random.default_rng(12), 120, 0
    for _ in range(n):
        d = crossed_effects(random, 1, 6, 60, 1.0, 20.0)[0]
        now, later = crossed_mean_error(d[:3]), crossed_mean_error(d)
        wider += later.critical(0.005) > Paired(0.0, 3, now).expected_half_width(6, 0.005)
    assert at_least(wider, n, 0.5) and at_most(wider, n, 0.5), wider
    of_items = MeanError(1e-9, 2, 1.0, 60)
    half = Paired(0.0, 3, of_items).expected_half_width(12, 0.05)
    assert half == pytest.approx(of_items.critical(0.05), rel=1e-3)


@pytest.mark.parametrize(("effect", "least", "most"), [(0.0, 0.0, 0.35), (1.5, 0.87, 1.0)])
def test_seeds_are_advised_for_most_pairs_that_they_settle(effect, least, most):
    """Of open pairs without a difference 30% are advised; of 1.5 deviations, 92% of the settled."""
    d = effect + np.random.default_rng(13).normal(size=(1500, 12))
    # The three later looks of until=decided share a tenth of the 5%.
    later = [stats.ttest_1samp(d[:, :n], 0, axis=1).pvalue <= 0.005 / 3 for n in (5, 8, 12)]
    is_open = stats.ttest_1samp(d[:, :3], 0, axis=1).pvalue > 0.05
    chosen = d[is_open & (np.any(later, axis=0) | (effect == 0)), :3]
    errors = [MeanError(row.var(ddof=1) / 3, 2) for row in chosen]
    pairs = [Paired(row.mean(), 3, error) for row, error in zip(chosen, errors, strict=True)]
    advised = sum(may_settle(PairTest(pair, pair.p)) for pair in pairs)
    assert at_least(advised, len(pairs), least) and at_most(advised, len(pairs), most), advised


def test_seeds_are_tried_only_where_they_may_settle_a_pair():
    """b is open, d is clear, e is hopeless."""
    above = {"b": [0.06, 0.05, 0.11], "d": [1.0, 1.01, 0.99], "e": [-0.9, 0.0, 0.91]}
    table = np.add([2.0, 2.3, 2.7], [[0.0] * 3, *above.values()])  # the luck of each seed

    def compared(rows, rule=None):
        return Memory(rows[..., None]).compare(rule)

    found = compared(table)
    claims = {name: found.metric_test(found.question.metric.name, 0, "a", name) for name in "bcd"}
    assert [name for name, claim in claims.items() if claim.is_significant] == ["c"]
    assert [may_settle(claims[name]) for name in "bd"] == [True, False]
    assert seeds_to_try(found) == 12
    assert seeds_to_try(compared(table[[0, 2, 3]])) == 0, "one is settled, the other is hopeless"
    assert seeds_to_try(compared(table[:, :1])) == 3, "of one seed nothing is known"
    assert seeds_to_try(compared(table, DecisionRule(looks=3))) == 0, "the looks are planned"


def test_items_widen_paired_interval():
    random = np.random.default_rng(5)
    d = 0.05 + 0.3 * random.normal(size=(1, 100)) + 0.001 * random.normal(size=(3, 100))
    one = {s: 2.0 for s in range(3)}
    two = {s: 2.0 + row.mean() for s, row in enumerate(d)}
    alone, both = paired(one, two), paired(one, two, ItemDifferences(dict(enumerate(d))))
    assert alone.n_items == 0 and both.n_items == 100 and both.mean == pytest.approx(alone.mean)
    # The items' own standard error, as in a t-interval over items.
    truth = stats.sem(d.mean(0)) * stats.t.ppf(0.975, 99)
    low, high = both.interval(0.05)
    assert (high - low) / 2 == pytest.approx(truth, rel=0.02) and alone.p < 1e-3 < both.p
