"""Whole reports on random figures in memory, compared with the known truth.

Bounds follow D[c, s, i] = mu_c + luck_s + hard_i + a_cs + b_ci + e_csi: seeds and items that all
cells share, and a share of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import numpy as np
from scipy import stats

from triptych.run.items import Items
from triptych.run.parsing import Estimate, SampleMeasures
from triptych.run.read import Run
from triptych.study import cells, compare
from triptych.study.cells import PairTest
from triptych.study.comparison import Comparison
from triptych.study.tables import table_rows
from triptych.study.verdict import describe_verdict

RATIOS = (
    0.03,
    0.3,
    3.0,
    30.0,
    1e6,
)  # variance of a mean over seeds through seeds, over that through items
RARE = 1e-4  # how often a promise that holds fails by chance
_run = itertools.count()


def at_most(hits: int, n: int, share: float) -> bool:
    """Return whether a probability ``share`` explains this number of hits among ``n`` draws."""
    return hits <= stats.binom.ppf(1 - RARE, n, share)


def bounds(
    random: np.random.Generator,
    mu: Sequence[float],
    seeds: int,
    items: int,
    ratio: float,
    rest: float = 1.0,
    sd: float = 0.01,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Draw bounds (cells, seeds, items); items of one of the `groups` (items,) correlate by .5.

    A cell's mean over three seeds has variance `sd`^2 through seeds and items; the interaction has
    `rest` times the larger of the two.
    """
    by_seed, by_item = 3 * sd**2 * ratio / (1 + ratio), items * sd**2 / (1 + ratio)
    spread = np.sqrt(rest * max(by_item, by_seed))
    c, normal = len(mu), random.normal

    def by_items(*shape: int) -> np.ndarray:
        own = normal(size=(*shape, items))
        if groups is None:
            return own
        return np.sqrt(0.5) * (own + normal(size=(*shape, groups.max() + 1))[..., groups])

    return (
        np.asarray(mu)[:, None, None]
        + 0.03 * normal(size=(1, seeds, 1)) + 0.4 * by_items(1, 1)
        + np.sqrt(by_seed) * normal(size=(c, seeds, 1)) + np.sqrt(by_item) * by_items(c, 1)
        + spread * by_items(c, seeds)
    )  # fmt: skip


class Memory:
    """Runs that exist only in memory: `runs` for compare, `items` in place of their files."""

    def __init__(
        self,
        table: np.ndarray,
        sampled: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        axis: str = "objective",
    ):
        """`table`: (cells, seeds, items); `sampled`: (cells, seeds, values) of two measures.

        One of the measures is higher if better. `groups`: recorded of the items, (items,). `axis`:
        the key in which cells differ.
        """
        self.runs, self._items = [], {}
        for c, cell in enumerate(table):
            for s, row in enumerate(cell):
                path = Path(f"/nowhere/{next(_run)}")
                self._items[path] = Items(np.arange(len(row)), row, groups)
                taken = None if sampled is None else _measured(sampled[c, s])
                name = "abcdefghijkl"[c]
                self.runs.append(Run(
                    dir=path, status="finished", overrides={axis: name, "seed": str(s)},
                    measured=taken, seed=s, choices={"data": "digits"},
                    test={"bpd": Estimate(float(row.mean()), 0.01, len(row))},
                ))  # fmt: skip

    def read(self) -> AbstractContextManager:
        """In the block, read_items reads from memory."""
        return mock.patch.object(cells, "read_items", lambda directory: self._items[directory])

    def compare(self, rule=None, seeds: Sequence[int] | None = None) -> Comparison:
        """Compare the runs of these seeds, by default of all."""
        with self.read():
            (found,) = compare.compare(
                [run for run in self.runs if seeds is None or run.seed in seeds], rule
            )
        return found


def _measured(values: np.ndarray) -> SampleMeasures:
    half = len(values) // 2
    found = tuple(
        {"energy_distance": float(d), "precision": float(p)}
        for d, p in zip(values[:half], values[half:], strict=True)
    )
    return SampleMeasures(
        "evaluations", tuple(range(1, half + 1)), found, n=100, reference="points"
    )


def claims_in_words(comparison: Comparison) -> list[str]:
    """Return all printed claims of a difference: in sentences, table rows and measures."""
    said = describe_verdict(comparison)
    told = [text for text in (said.headline, *said.lines) if "lear of" in text]
    # The table's intervals claim nothing, and take most of its time.
    with mock.patch.object(PairTest, "interval", (0.0, 0.0)):
        rows = table_rows(comparison)
    return told + [row.label for row in rows if row.verdict.startswith(("worse", "better"))]
