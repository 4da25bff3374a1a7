"""The bounds of a uniform distribution and of each pixel's histogram, counted by hand."""

import csv
import gzip
import math
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from triptych.data.digits import Digits
from triptych.data.mixture import Ring
from triptych.run.account import baseline_bounds


def test_digits_baselines_match_count_from_file():
    """Compute (n_k + 1 / K) / (n + 1) in plain Python from scikit-learn's table."""
    file = (
        Path(find_spec("sklearn").submodule_search_locations[0])
        / "datasets"
        / "data"
        / "digits.csv.gz"
    )
    with gzip.open(file, "rt") as lines:
        rows = [[int(float(value)) for value in row[:64]] for row in csv.reader(lines)]
    order = np.random.RandomState(0).permutation(1797)
    train, test = [rows[i] for i in order[:1350]], [rows[i] for i in order[1500:]]
    bits = np.zeros(297)  # of an image
    for pixel in range(64):
        counts = Counter(row[pixel] for row in train)
        bits -= [math.log2((counts[row[pixel]] + 1 / 17) / 1351) / 64 for row in test]
    data = Digits()
    data.setup()
    found = baseline_bounds(data)
    assert found["histogram"]["mean"] == pytest.approx(bits.mean(), rel=1e-12)
    assert found["histogram"]["stderr"] == pytest.approx(stats.sem(bits), rel=1e-9)
    assert found["histogram"]["n"] == 297
    assert found["uniform"] == {
        "mean": pytest.approx(math.log2(17), rel=1e-12),
        "stderr": 0.0,
        "n": 297,
    }


def test_data_with_density_have_no_baselines():
    data = Ring(train_size=10, val_size=0, test_size=10)
    data.setup()
    assert baseline_bounds(data) is None
