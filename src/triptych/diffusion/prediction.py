r"""Predictions and their conversion between x0, epsilon, score, v, velocity and EDM's F.

With ``z = alpha x0 + sigma epsilon`` each space is a row (c, d) of one table (Luo 2022, eqs. 69,
115, 131):

    value = c x0 + d epsilon,   x0 = (d z - sigma value) / D,   epsilon = (alpha value - c z) / D

with ``D = alpha d - sigma c``. An error in one space is therefore an error in each: ``|value error|
= |D| / alpha |epsilon error|``. Apart from how easily a network learns each of them, objectives
differ by this scale alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

Number = Tensor | float


class Row(NamedTuple):
    """The coefficients of a space at one (alpha, sigma): ``unit * value = c x0 + d epsilon``.

    With a common factor in ``unit``, c and d stay exact, and with them ``c' d - d' c``. A Python 0
    or 1 costs no operation.
    """

    c: Number
    d: Number
    unit: Number = 1.0


@dataclass(frozen=True, eq=False)
class Space:
    """A space of predictions: its name and its ``Row`` as a function of alpha and sigma.

    alpha and sigma are tensors that broadcast against z.
    """

    name: str
    row: Callable[[Tensor, Tensor], Row]


def edm(sigma_data: float = 0.5) -> Space:
    """Return the space of EDM's F (Karras et al. 2022, table 1).

    ``x0 = c_skip z / alpha + c_out F`` with c_skip = sd^2 / (s^2 + sd^2) and c_out = s sd /
    sqrt(s^2 + sd^2), so with z / alpha = x0 + s epsilon

        F = (sigma x0 - sd^2 alpha epsilon) / (sd h), h = sqrt(sigma^2 + sd^2 alpha^2), D = -h / sd,

    where sd is ``sigma_data``. With sd = 1 under a variance-preserving process F is -v.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data={sigma_data}: must be above 0")

    def row(alpha: Tensor, sigma: Tensor) -> Row:
        return Row(
            sigma, -(sigma_data**2) * alpha, sigma_data * torch.hypot(sigma, sigma_data * alpha)
        )

    return Space("edm", row)


SPACES = {
    space.name: space
    for space in (
        Space("x0", lambda alpha, sigma: Row(1.0, 0.0)),  # the denoised point
        Space("epsilon", lambda alpha, sigma: Row(0.0, 1.0)),  # the noise
        Space("score", lambda alpha, sigma: Row(0.0, 1.0, -sigma)),  # -epsilon / sigma
        Space("v", lambda alpha, sigma: Row(-sigma, alpha)),  # Salimans & Ho 2022
        # dz/dt on the straight path from x0.
        Space("velocity", lambda alpha, sigma: Row(-1.0, 1.0)),
        edm(),
    )
}


def space_of(space: str | Space) -> Space:
    """Return a space by its name; ValueError for an unknown one."""
    if isinstance(space, Space):
        return space
    if space not in SPACES:
        raise ValueError(f"space={space!r}: must be one of {', '.join(SPACES)}")
    return SPACES[space]


def error_scale(space: str | Space, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the ratio s of the error in ``space`` to the epsilon error: |D| / alpha.

    For x0 it is sigma / alpha.
    """
    row = space_of(space).row(alpha, sigma)
    # With c = 0 the scale is d itself, without rounding.
    ratio: Any = row.d if _is_python_number(row.c, 0) else _determinant(row, alpha, sigma) / alpha
    return torch.ones_like(alpha) * abs(ratio / row.unit)


class Prediction:
    """A prediction that is made in one space and converted to the others on demand.

    Args:
        space: the space of ``value`` (B, *event): a name among ``SPACES``, or a ``Space``.
        z, alpha, sigma: the latent and the level at which it was made; alpha and sigma broadcast
            against z.

    ``fraction`` is set if the network also predicts the reverse variance, see ``reverse_variance``.
    """

    fraction: Tensor | None = None

    def __init__(self, space: str | Space, value: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor):
        self.own = space_of(space)
        self.value, self.z, self.alpha, self.sigma = value, z, alpha, sigma
        self._views = {self.own: value}
        self._row = self.own.row(alpha, sigma)

    @property
    def x0(self) -> Tensor:
        """E[x | z], the denoised point (from a score: Tweedie's formula, Luo 2022, eq. 133)."""
        return self.view("x0")

    @property
    def epsilon(self) -> Tensor:
        """E[eps | z], the noise in z."""
        return self.view("epsilon")

    @property
    def score(self) -> Tensor:
        """grad log p(z), the direction of growing density."""
        return self.view("score")

    @property
    def v(self) -> Tensor:
        """alpha epsilon - sigma x0, the velocity along the circle z = cos a x0 + sin a epsilon."""
        return self.view("v")

    def view(self, space: str | Space) -> Tensor:
        """Return the prediction in a space, (B, *event).

        It is ``((c' d - d' c) z + D' value) / D``, from the rows of both spaces.
        """
        space = space_of(space)
        if space not in self._views:
            self._views[space] = self._convert(space.row(self.alpha, self.sigma))
        return self._views[space]

    def moved(self, space: str | Space, value: Tensor) -> "Prediction":
        """Return the prediction ``value`` (B, *event) of ``space``, with the same learned variance.

        As in Dhariwal & Nichol 2021 and GLIDE (Nichol et al. 2022), guidance and clipping move the
        mean of a reverse step but do not change its width.
        """
        guess = Prediction(space, value, self.z, self.alpha, self.sigma)
        guess.fraction = self.fraction
        return guess

    def at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the predicted latent at another level, alpha x0 + sigma epsilon.

        It is computed as one linear combination of z and ``value``.
        """
        c, d, unit = self._row
        if _is_python_number(c, 0):  # the value is a multiple of epsilon, so only x0 depends on z
            of_z = alpha / self.alpha
            of_value = _divide(sigma - self.sigma * of_z, d)
        elif _is_python_number(d, 0):
            of_z = sigma / self.sigma
            of_value = _divide(alpha - self.alpha * of_z, c)
        else:
            of_z = (alpha * d - sigma * c) / self._D
            of_value = (sigma * self.alpha - alpha * self.sigma) / self._D
        return (of_z * self.z).addcmul_(self.value, _multiply(unit, of_value))

    def epsilon_error(self, x: Tensor, eps: Tensor) -> Tensor:
        """Return the prediction's error epsilon_hat - eps, given the true x and eps.

        The error is formed in the prediction's own space and then scaled: ``(z - alpha x_hat) /
        sigma - eps`` would lose digits at both ends of the schedule.
        """
        c, d, unit = self._row
        own = _multiply(unit, self.value) - _linear_combination(c, x, d, eps)
        return _multiply(1 / d if _is_python_number(c, 0) else self.alpha / self._D, own)

    @cached_property
    def _D(self) -> Tensor:
        return _determinant(self._row, self.alpha, self.sigma)

    def _convert(self, to: Row) -> Tensor:
        c, d, unit = self._row
        of_z = _linear_combination(to.c, d, -to.d, c)
        # One value is a multiple of the other, as for epsilon and the score, so z is not needed.
        if _is_python_number(of_z, 0):
            return (
                _multiply(unit * (to.c / c if _is_python_number(d, 0) else to.d / d), self.value)
                / to.unit
            )
        of_value = _determinant(to, self.alpha, self.sigma) * unit
        return _linear_combination(of_z, self.z, of_value, self.value) / (self._D * to.unit)


def _determinant(row: Row, alpha: Tensor, sigma: Tensor) -> Tensor:  # returns D
    return _linear_combination(row.d, alpha, -row.c, sigma)


def _is_python_number(number: Number, value: float) -> bool:
    """Return whether ``number`` is the Python number ``value``; False for a tensor."""
    return not isinstance(number, Tensor) and number == value


def _multiply(factor: Number, x: Number) -> Any:
    if _is_python_number(factor, 1):
        return x
    return factor * x


def _divide(x: Tensor, divisor: Number) -> Tensor:
    if _is_python_number(divisor, 1):
        return x
    return x / divisor


def _linear_combination(a: Number, x: Number, b: Number, y: Number) -> Any:
    """Return a x + b y; leave out a term that has a Python 0 as a factor."""
    if _is_python_number(b, 0) or _is_python_number(y, 0):
        if _is_python_number(a, 0) or _is_python_number(x, 0):
            return 0.0
        return _multiply(a, x)
    if _is_python_number(a, 0) or _is_python_number(x, 0):
        return _multiply(b, y)
    return _multiply(a, x) + _multiply(b, y)
