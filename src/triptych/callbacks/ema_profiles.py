r"""Profiles of weight averages: power functions (EDM2, Karras et al. 2024, section 3, app. C), exponential.

A profile is the weight that each step's parameters have in the average at step n. A power function's,

    p(tau) = (gamma + 1) tau^gamma / n^(gamma + 1),   0 < tau <= n,

grows with the run: its standard deviation is the share sigma_rel of n, whatever n is, and it gives the
initial parameters no weight. It is kept by a running average with

    average <- beta_n average + (1 - beta_n) parameters,   beta_n = (1 - 1 / n)^(gamma + 1),

exactly: step i ends with (i^(gamma + 1) - (i - 1)^(gamma + 1)) / n^(gamma + 1), the integral of p over it.
"""

import math
from collections.abc import Sequence

import numpy as np

SNAPSHOTS = "averages"  # folder of a run's directory
POWER = "sigma_rel_"  # begins the name of a power function's average
LONGEST = 1 / math.sqrt(12)  # the plain mean of all steps, gamma = 0


def exponent(sigma_rel: float) -> float:
    """Return gamma >= 0 of sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2); or ValueError."""
    if not 0 < sigma_rel < LONGEST:
        raise ValueError(f"sigma_rel={sigma_rel}: must be above 0, below {LONGEST:.4f} (the mean of all)")
    low, high = 0.0, 1 / sigma_rel  # (gamma + 1) / (gamma + 3) < 1, so gamma + 2 < 1 / sigma_rel
    while low < (middle := 0.5 * (low + high)) < high:
        longer = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > sigma_rel**2
        low, high = (middle, high) if longer else (low, middle)
    return low


def power_beta(gamma: float, n: int) -> float:
    """Return what is kept of the average at step n = 1, 2, ...: (1 - 1/n)^(gamma + 1)."""
    return (1 - 1 / n) ** (gamma + 1)


def half_life_beta(half_life: float, n: int) -> float:
    """Return the same for weights 2^(-(n - i) / half_life), i = 1 ... n, normalised, none of step 0."""
    keep = 2 ** (-1 / half_life)
    return 1 - (1 - keep) / (1 - keep**n)


def combination(stored: Sequence[tuple[int, float]], step: int, sigma_rel: float) -> np.ndarray:
    """Solve for factors of stored averages whose sum is nearest to one of another length (app. C, alg. 3).

    Nearest by the squared distance of the profiles, among factors that sum to 1: what does not move in
    training comes out as it is. ``stored``: (step, sigma_rel) of each, in the order of the factors.
    """
    profiles = [(t, exponent(s)) for t, s in stored]
    own = np.array([[_product(a, b) for b in profiles] for a in profiles])
    aim = np.array([_product(a, (step, exponent(sigma_rel))) for a in profiles])
    scale = 1 / np.sqrt(np.diag(own))  # profiles of length one: early ones are high and narrow
    count = len(profiles)
    # the minimum on the plane sum = 1, with its Lagrange multiplier
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = own * scale[:, None] * scale
    system[count, :count] = system[:count, count] = scale
    factors = np.linalg.lstsq(system, np.append(aim * scale, 1.0), rcond=None)[0][:count] * scale
    return factors / factors.sum()


def _product(a: tuple[int, float], b: tuple[int, float]) -> float:
    """Return the integral of two power profiles' product, each given by its (step, gamma)."""
    (s, c), (t, d) = a, b
    overlap = (c + d + 1) * math.log(min(s, t)) - (c + 1) * math.log(s) - (d + 1) * math.log(t)
    return (c + 1) * (d + 1) / (c + d + 1) * math.exp(overlap)
