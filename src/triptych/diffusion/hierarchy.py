r"""Markovian hierarchical VAEs with any Gaussian encoders and decoders (Luo 2022).

Luo's section is "Hierarchical Variational Autoencoders".

    x = z_0 -> z_1 -> ... -> z_L    q(z_l | z_{l-1}), any Gaussian encoders
    x       <- z_1 <- ... <- z_L    p(x | z_1), p(z_{l-1} | z_l), p(z_L), any Gaussian decoders

One pass up draws one path. Its log-ratios estimate the bound without bias, whatever the encoders
and decoders:

    -log p(x) <= E_q[-log p(x | z_1) + sum_{l < L} log q(z_l | z_{l-1}) / p(z_l | z_{l+1})
                     + KL(q(z_L | z_{L-1}) || p(z_L))]

Luo's "consistency" form (eq. 45) writes each ratio as KL(q(z_l | z_{l-1}) || p(z_l | z_{l+1})).
That is **not** an identity: z_l and z_{l+1} depend on each other given z_{l-1}, so z_l may not be
averaged while z_{l+1} is held fixed. We therefore use the ratios; only the top level, with no level
above it, is a KL. ``docs/decompositions.py`` shows the difference.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .bound import BoundTerms
from .draws import Noise
from .normal import Normal

Conditional = Callable[[Tensor], Normal]


class Hierarchy:
    """A hierarchical VAE with L levels of latents over x.

    Args:
        encoders: q(z_l | z_{l-1}) for l = 1 ... L, each a function of z_{l-1}.
        decoders: p(z_{l-1} | z_l) for l = 2 ... L, each a function of z_l.
        reconstruction: (x, z_1) -> -log p(x | z_1), nats (B,).
        prior: z_L -> p(z_L), which uses only the shape and device of z_L.
    """

    def __init__(
        self,
        encoders: Sequence[Conditional],
        decoders: Sequence[Conditional],
        reconstruction: Callable[[Tensor, Tensor], Tensor],
        prior: Conditional,
    ):
        self.encoders, self.decoders = encoders, decoders
        self.reconstruction, self.prior = reconstruction, prior

    def path(self, x: Tensor, noise: Noise) -> list[Tensor]:
        """Draw the latents z_1 ... z_L once for x (B, *event); gradients flow through the draws."""
        path, z = [], x
        for encode in self.encoders:
            q = encode(z)
            z = q.at(noise(q.mean.shape).to(q.mean))
            path.append(z)
        return path

    def ratios(self, x: Tensor, path: Sequence[Tensor], analytic_top: bool = True) -> list[Tensor]:
        """Return log q(z_l | z_{l-1}) / p(z_l | z_{l+1}) of each level, nats (B,) each.

        If ``analytic_top``, the entry of the top level is its KL instead.
        """
        ratios = []
        for level, (z, below) in enumerate(zip(path, (x, *path), strict=False)):
            q = self.encoders[level](below)
            if level == len(path) - 1:
                top = self.prior(z)
                ratios.append(q.kl(top) if analytic_top else q.log_prob(z) - top.log_prob(z))
            else:
                ratios.append(q.log_prob(z) - self.decoders[level](path[level + 1]).log_prob(z))
        return ratios

    def bound(self, x: Tensor, path: Sequence[Tensor]) -> BoundTerms:
        """Return an unbiased estimate of the bound at x from one path.

        The top level's term is reported as the prior term.
        """
        *inner, top = self.ratios(x, path)
        return BoundTerms(
            top, self.reconstruction(x, path[0]), torch.stack(inner).sum(0) if inner else top * 0
        )

    def log_weight(self, x: Tensor, path: Sequence[Tensor]) -> Tensor:
        """Return the importance log-weight log p(x, z) / q(z | x) of one path, nats (B,)."""
        return -self.reconstruction(x, path[0]) - torch.stack(
            self.ratios(x, path, analytic_top=False)
        ).sum(0)

    def sample(self, top: Tensor, noise: Noise) -> Tensor:
        """Draw z_1 by ancestral sampling from z_L = ``top`` (B, *event)."""
        z = top
        for decode in reversed(self.decoders):
            p = decode(z)
            z = p.at(noise(p.mean.shape).to(p.mean))
        return z


def importance_weighted(log_weights: Tensor) -> Tensor:
    """Return the importance-weighted bound -log 1/K sum_k w_k (Burda et al. 2016), (B,).

    ``log_weights``: (K, B). The bound is tighter for larger K.
    """
    return -(torch.logsumexp(log_weights, 0) - torch.log(torch.tensor(float(len(log_weights)))))
