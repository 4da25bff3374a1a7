r"""One guess at (z, gamma), seen four ways: x0, epsilon, score and v.

With ``z = alpha x + sigma eps`` the four are affine in one another (tutorial eqs. 69, 115, 131-133;
Salimans & Ho 2022 for v):

    epsilon = (z - alpha x0) / sigma        score = -epsilon / sigma        v = alpha epsilon - sigma x0

so an error in one is an error in each: ``|space error| = error_scale(space) |epsilon error|``. That
scale is all the difference there is between the objectives, apart from what a network finds easy.
"""

from functools import cached_property

from torch import Tensor

SPACES = ("x0", "epsilon", "score", "v")


def error_scale(space: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """s with |space error| = s |epsilon error|: sigma/alpha, 1, 1/sigma, (alpha^2 + sigma^2)/alpha."""
    match space:
        case "x0":
            return sigma / alpha
        case "epsilon":
            return sigma / sigma
        case "score":
            return 1 / sigma
        case "v":
            return (alpha.square() + sigma.square()) / alpha
    raise ValueError(f"space={space!r}: one of {', '.join(SPACES)} is accepted")


class Prediction:
    """Four views of one guess. Made from any one of them; the others are computed when asked for.

    Args:
        space: which view ``value`` is, one of ``SPACES``.
        value: the guess, (B, *event).
        z, alpha, sigma: where it was made; alpha and sigma broadcast against z.

    Raises:
        ValueError: an unknown space.

    ``fraction`` is set where a network says how large its reverse step is, see ``reverse_variance``.
    """

    fraction: Tensor | None = None

    def __init__(self, space: str, value: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor):
        if space not in SPACES:
            raise ValueError(f"space={space!r}: one of {', '.join(SPACES)} is accepted")
        self.space, self.z, self.alpha, self.sigma = space, z, alpha, sigma
        self.__dict__[space] = value  # seeds the cached view below

    @cached_property
    def x0(self) -> Tensor:
        """E[x | z], the denoised point."""
        z, alpha, sigma = self.z, self.alpha, self.sigma
        match self.space:
            case "epsilon":
                return (z - sigma * self.epsilon) / alpha
            case "score":  # Tweedie's formula, tutorial eq. 133
                return (z + sigma.square() * self.score) / alpha
            case _:
                return (alpha * z - sigma * self.v) / (alpha.square() + sigma.square())

    @cached_property
    def epsilon(self) -> Tensor:
        """E[eps | z], the noise in z."""
        z, alpha, sigma = self.z, self.alpha, self.sigma
        match self.space:
            case "x0":
                return (z - alpha * self.x0) / sigma
            case "score":
                return -sigma * self.score
            case _:
                return (sigma * z + alpha * self.v) / (alpha.square() + sigma.square())

    @cached_property
    def score(self) -> Tensor:
        """grad log p(z), the direction of growing density."""
        match self.space:
            case "x0":
                return (self.alpha * self.x0 - self.z) / self.sigma.square()
            case _:
                return -self.epsilon / self.sigma

    @cached_property
    def v(self) -> Tensor:
        """alpha epsilon - sigma x0, the velocity along the circle z = cos x0 + sin epsilon."""
        z, alpha, sigma = self.z, self.alpha, self.sigma
        square = alpha.square() + sigma.square()
        match self.space:
            case "x0":
                return (alpha * z - square * self.x0) / sigma
            case _:
                return (square * self.epsilon - sigma * z) / alpha

    def at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """alpha x0 + sigma epsilon: the guess carried to another noise level, the step of every sampler.

        Formed as one combination of z and the guess in its own space, without going through x0 and epsilon.
        """
        a, s = self.alpha, self.sigma
        match self.space:
            case "x0":
                of_z = sigma / s
                of_guess = alpha - a * of_z
            case "epsilon":
                of_z = alpha / a
                of_guess = sigma - s * of_z
            case "score":
                of_z = alpha / a
                of_guess = s * (s * of_z - sigma)
            case _:
                square = a.square() + s.square()
                of_z, of_guess = (alpha * a + sigma * s) / square, (sigma * a - alpha * s) / square
        return (of_z * self.z).addcmul_(self.__dict__[self.space], of_guess)

    def epsilon_error(self, x: Tensor, eps: Tensor) -> Tensor:
        """epsilon_hat - eps for the truth (x, eps), taken in the guess's own space.

        Differences are formed where the guess lives, then scaled: ``(z - alpha x_hat) / sigma - eps``
        would lose digits at both ends of the schedule.
        """
        alpha, sigma = self.alpha, self.sigma
        match self.space:
            case "x0":
                return (x - self.x0) * (alpha / sigma)
            case "epsilon":
                return self.epsilon - eps
            case "score":
                return -(sigma * self.score + eps)
            case _:
                scale = alpha / (alpha.square() + sigma.square())
                return (self.v - (alpha * eps - sigma * x)) * scale
