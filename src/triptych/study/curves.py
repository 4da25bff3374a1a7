"""One line per cell: error by noise level, the bound over training, effective weights."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from triptych.run.entries import Curve
from triptych.run.read import Run
from triptych.study.cells import Comparison
from triptych.study.figures import Colours
from triptych.study.style import INK, LineFigure, log_axis, mark

GAMMA = "γ = −log SNR   (left: clean, right: noise)"
THIN = 400  # seeds whose lines can be told apart
Line = tuple[np.ndarray, np.ndarray, Run]  # steps, or seconds, and values of a run
MeanCurve = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # gamma, mean over seeds, standard error


def noise_levels(comparison: Comparison, colours: Colours) -> Figure | None:
    """Mean squared error of the noise estimate per dimension, by noise level, on the test set."""
    curves = _means(comparison, "noise_levels")
    return _by_noise_level(curves, colours, "squared error of ε, per dimension") if curves else None


def weights(comparison: Comparison, colours: Colours) -> Figure | None:
    """Return weight each objective puts on the noise error, by noise level; only where cells differ in it."""
    curves: dict[str, MeanCurve] = {}
    for cell in comparison.cells:
        if curve := next((run.weighting for run in cell.runs.values() if run.weighting), None):
            curves[cell.label] = np.array(curve.gamma), np.array(curve.value), None
    shapes = [value for _, value, _ in curves.values()]
    if all(s.shape == shapes[0].shape and np.allclose(s, shapes[0], 1e-3) for s in shapes):
        return None
    gamma = next(iter(curves.values()))[0]
    level = gamma, np.ones_like(gamma)
    return _by_noise_level(curves, colours, "weight on the error of ε, ELBO = 1", level)


def _by_noise_level(
    curves: Mapping[str, MeanCurve],
    colours: Colours,
    ylabel: str,
    dashed: tuple[np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """Return a line a cell with the band of its error on a log axis, and a dashed line to compare with."""
    lines = LineFigure(curves, colours)
    if dashed:
        lines.ax.plot(*dashed, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    for label, (gamma, value, error) in curves.items():
        shown = np.where(value > 0, value, np.nan)
        lines.line(label, gamma, shown, marker=True, markersize=3)
        if error is not None:
            low, high = np.maximum(shown - error, shown * 0.05), shown + error
            lines.ax.fill_between(gamma, low, high, color=colours[label], alpha=0.18, linewidth=0)
    log_axis(lines.ax, np.concatenate([value for _, value, _ in curves.values()]))
    lines.ax.margins(x=0.02)
    return lines.finish(GAMMA, ylabel)


def training_time(comparison: Comparison, colours: Colours) -> Figure | None:
    """Return validation bound over seconds of training: thin lines are seeds, the thick one their mean."""
    return training(comparison, colours, over_seconds=True)


def training(comparison: Comparison, colours: Colours, over_seconds: bool = False) -> Figure | None:
    """Return the validation bound over training steps: thin lines are seeds, the thick one their mean."""
    bound = f"val/{comparison.measure}"
    lines: dict[str, list[Line]] = {}
    for cell in comparison.cells:
        for run in cell.runs.values():
            columns = run.histories((bound, "time"))
            steps, history = columns.get(bound, ([], []))
            seconds = dict(zip(*columns.get("time", ([], [])), strict=True))
            at = np.array([seconds.get(step, math.nan) for step in steps] if over_seconds else steps)
            if len(steps) > 1 and np.isfinite(at).all():
                lines.setdefault(cell.label, []).append((at, np.array(history), run))
    if not lines:
        return None
    drawn = LineFigure(lines, colours)
    thin = sum(map(len, lines.values())) <= THIN
    for label, seeds in lines.items():
        places = np.unique(np.concatenate([at for at, *_ in seeds]))
        first, end = max(at[0] for at, *_ in seeds), min(at[-1] for at, *_ in seeds)
        places = places[(places >= first) & (places <= end)]
        if len(seeds) > 1 and (thin or not places.size):
            for at, values, run in seeds:
                drawn.ax.plot(at, values, color=colours[label], linewidth=0.7, alpha=0.45, gid=mark(run))
        if places.size:
            mean = np.mean([np.interp(places, at, values) for at, values, _ in seeds], axis=0)
            only = mark(seeds[0][2]) if len(seeds) == 1 else None
            drawn.line(label, places, mean, linewidth=2, gid=only)
        else:  # no moment that all seeds share: the legend names the thin lines
            drawn.line(label, [], [], linewidth=0.7)
            drawn.ends[label] = float(np.mean([values[-1] for _, values, _ in seeds]))
    # the first value says how a random network does: it would flatten everything that follows
    far = comparison.bounds.far
    near = [seeds for label, seeds in lines.items() if label not in far] or [*lines.values()]
    known = [values for seeds in near for _, values, _ in seeds]
    values, last = np.concatenate(known), [one[-1] for one in known]
    top = max(float(np.quantile(values, 0.85)), max(last) + 0.3 * (max(last) - min(last)))
    low, top = float(values.min()), min(top, float(values.max()))
    pad = 0.05 * (top - low) or 1e-3
    drawn.ax.set_ylim(low - pad, top + pad)
    drawn.ax.margins(x=0.02)
    along = "seconds of training" if over_seconds else "training step"
    return drawn.finish(along, f"validation bound, {comparison.unit}")


def posterior_mean_error(comparison: Comparison, colours: Colours) -> Figure | None:
    """Squared error of the posterior mean against the true one, per dimension, by noise level."""
    means = _means(comparison, "tweedie")
    # an oracle's error is rounding, decades below everything: it would flatten the others
    means = {label: (*curve[:2], None) for label, curve in means.items() if np.max(curve[1]) > 1e-8}
    if not means:
        return None
    spread = next(run.posterior for run in comparison.runs if run.posterior)
    dashed = np.array(spread.gamma), np.array(spread.value)
    return _by_noise_level(means, colours, "squared error, per dimension", dashed)


def _means(comparison: Comparison, of: str) -> dict[str, MeanCurve]:
    seeds = {c.label: [curve for r in c.runs.values() if (curve := getattr(r, of))] for c in comparison.cells}
    return {label: curve for label, curves in seeds.items() if (curve := mean_over_seeds(curves))}


def mean_over_seeds(seeds: Sequence[Curve]) -> MeanCurve | None:
    """Return gamma, the curves' mean and its standard error (None for one curve); None without curves.

    Levels that differ by seed (learned endpoints) are read at common ones, linearly between logarithms.
    """
    if not seeds:
        return None
    gamma = np.array(seeds[0].gamma)
    if any(curve.gamma != seeds[0].gamma for curve in seeds):
        low, high = max(min(c.gamma) for c in seeds), min(max(c.gamma) for c in seeds)
        if low >= high:  # no level that all have
            return None
        gamma = np.linspace(low, high, len(gamma))
    values = np.array([_read_at(gamma, curve) for curve in seeds])
    error = values.std(axis=0, ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else None
    return gamma, values.mean(axis=0), error


def _read_at(gamma: np.ndarray, curve: Curve) -> np.ndarray:
    order = np.argsort(curve.gamma)
    at, value = np.array(curve.gamma)[order], np.array(curve.value)[order]
    if (value > 0).all():
        return np.exp(np.interp(gamma, at, np.log(value)))
    return np.interp(gamma, at, value)
