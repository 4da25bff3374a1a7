"""Statistics compared with scipy, and laws that hold for any numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import stats

from triptych.run.parsing import Estimate
from triptych.study.formatting import (
    duration,
    p_value,
    plus_minus,
    three_digits,
    with_interval,
)
from triptych.study.statistics import holm, outlying_labels, paired, spread

figures = st.floats(-10, 10).map(lambda x: round(x, 6))
pairs = st.lists(st.tuples(figures, figures), min_size=2, max_size=9)


@given(pairs)
def test_paired_matches_scipy_ttest_rel(values):
    reference, other = ({i: pair[k] for i, pair in enumerate(values)} for k in (0, 1))
    differences = np.array(list(other.values())) - np.array(list(reference.values()))
    assume(differences.std() > 1e-5)
    truth = stats.ttest_rel(list(other.values()), list(reference.values()))
    ours = paired(reference, other)
    assert ours.p == pytest.approx(truth.pvalue, rel=1e-7, abs=1e-12)
    ends = truth.confidence_interval(0.95)
    low, high = ours.interval(0.05)
    assert (low, high) == pytest.approx((ends.low, ends.high), rel=1e-7, abs=1e-9)
    assert (low > 0 or high < 0) == (ours.p < 0.05) or math.isclose(ours.p, 0.05, rel_tol=1e-6)


@given(st.lists(figures, min_size=2, max_size=9))
def test_a_spread_is_mean_and_standard_error(values):
    ours = spread(values)
    assert (ours.mean, ours.n) == (pytest.approx(np.mean(values), abs=1e-9), len(values))
    assert ours.stderr == pytest.approx(stats.sem(values), abs=1e-9)


@given(pairs, st.floats(-5, 5))
def test_paired_ignores_shift_common_to_a_seed(values, luck):
    reference, other = ({i: pair[k] for i, pair in enumerate(values)} for k in (0, 1))
    shifted = [{i: v + luck * i for i, v in side.items()} for side in (reference, other)]
    before, after = paired(reference, other), paired(*shifted)
    assert after.mean == pytest.approx(before.mean, abs=1e-7)
    if not math.isnan(before.p + after.p):
        assert after.interval(0.05) == pytest.approx(before.interval(0.05), abs=1e-6)


@given(pairs)
@example([(0.0, 3.029146)] * 3)  # equal but for rounding, from either side
def test_paired_is_antisymmetric(values):
    one, two = ({i: pair[k] for i, pair in enumerate(values)} for k in (0, 1))
    there, back = paired(one, two), paired(two, one)
    there, back = ((x.p, x.n, *x.interval(0.05)) for x in (there, replace(back, mean=-back.mean)))
    assert there == pytest.approx(back, abs=1e-12, nan_ok=True)


def test_only_common_seeds_count():
    pair = paired({1: 1.0, 2: 2.0, 9: 100.0}, {1: 1.5, 2: 2.7, 3: -100.0})
    assert (pair.n, pair.mean) == (2, pytest.approx(0.6))


@pytest.mark.parametrize("reference, other, n", [({}, {1: 1.0}, 0), ({1: 1.0}, {1: 2.0}, 1)])
def test_paired_of_fewer_than_two_seeds_is_nan(reference, other, n):
    pair = paired(reference, other)
    assert pair.n == n and math.isnan(pair.interval(0.05)[0]) and math.isnan(pair.p)
    assert math.isnan(pair.one_sided_p(9.0 - abs(pair.mean))), "nor that they are the same"


def test_paired_of_identical_seeds_has_nan_p():
    pair = paired({1: 2.1, 2: 2.1, 3: 2.1}, {1: 2.2, 2: 2.2, 3: 2.2})
    assert pair.mean == pytest.approx(0.1) and math.isnan(pair.p)


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=9))
def test_holm_raises_p_values_and_keeps_order(p_values):
    adjusted = holm(p_values)
    known = [(p, q) for p, q in zip(p_values, adjusted, strict=True) if not math.isnan(p)]
    assert all(p <= q <= 1 for p, q in known)
    assert [math.isnan(q) for q in adjusted] == [math.isnan(p) for p in p_values]
    assert all(a[1] <= b[1] for a in known for b in known if a[0] < b[0])
    # At least one hypothesis is rejected exactly where Bonferroni rejects one.
    assert any(q <= 0.05 for _, q in known) == any(len(known) * p <= 0.05 for p, _ in known)


@pytest.mark.parametrize(
    "mean, stderr, said",
    [
        (0.295, 0.000996, "0.295 ± 0.001"),  # no "0.00100": two digits of 0.000996 are 0.001
        (1.9, 0.00061, "1.90000 ± 0.00061"),  # of as many decimals as its error
        (1.9, 0.0034, "1.900 ± 0.003"),
        (0.0000132, 0.0000021, "0.0000132 ± 0.0000021"),
        (2.0, 0.0, "2.000 ± 0.000"),
    ],
)
def test_plus_minus_rounds_mean_to_its_error(mean, stderr, said):
    assert plus_minus(Estimate(mean, stderr, 3)) == said


@pytest.mark.parametrize(
    "figures, said",
    [
        ((0.12, 0.1, 0.14), "+0.120 [0.100, 0.140]"),
        (
            (0.046596, 0.046492, 0.0467),
            "+0.04660 [0.04649, 0.04670]",
        ),  # three decimals would show no width
        ((-0.5, -0.5 - 6e-8, -0.5 + 6e-8), "−0.500 [−0.500, −0.500]"),
        ((0.12, math.nan, math.nan), "+0.120"),
    ],
)
def test_with_interval_rounds_to_interval_width(figures, said):
    assert with_interval(*figures, sign=True) == said


@pytest.mark.parametrize(
    "values, bad",
    [
        ({"a": [1.9, 1.92], "b": [2.1], "c": [9.0, 12.0]}, {"c"}),
        ({"a": [1.9], "b": [2.1], "c": [2.3], "d": [9.0], "e": [1e6]}, {"d", "e"}),
        ({"a": [1.9], "b": [2.1], "c": [2.9]}, set()),  # five times the others' span
        ({"a": [1.9], "b": [9.0]}, set()),  # two settings: there are no others
        (
            {"a": [1.9], "b": [2.1], "c": [9.0], "d": [9.1], "e": [9.2]},
            set(),
        ),  # the others are most
        ({"a": [1.9], "b": [1.9], "c": [2.0]}, set()),
        ({}, set()),
    ],
)
def test_far_finds_outlier_settings(values, bad):
    assert outlying_labels(values) == bad
    assert (
        outlying_labels(
            {label: [-value for value in several] for label, several in values.items()}, -1
        )
        == bad
    )


def test_three_digits_uses_no_exponent():
    shown = {
        0.012345: "0.0123",
        12.04: "12",
        999.4: "999",
        999.6: "1,000",
        1066: "1,070",
        2.0e6: "2,000,000",
    }
    assert {x: three_digits(x) for x in shown} == shown


def test_duration_has_readable_units():
    shown = {
        2.34: "2.3 s",
        41: "41 s",
        200: "3 min 20 s",
        7500: "2 h 05 min",
        540_000: "150 h",
        2.0916e10: "5,810,000 h",
    }
    assert {seconds: duration(seconds) for seconds in shown} == shown
    assert duration(math.nan) == "–"


@pytest.mark.parametrize(
    "p, text",
    [
        (math.nan, "–"), (0.00009, "<0.0001"), (0.0312, "0.031"), (0.0496, "0.05"), (0.05, "0.05"),
        (0.050116, "0.0501"), (0.0500004, "0.0500004"), (0.0507, "0.051"), (0.996, "1"),
    ],
)  # fmt: skip
def test_printed_p_is_on_its_side_of_the_level(p, text):
    assert p_value(p) == text
