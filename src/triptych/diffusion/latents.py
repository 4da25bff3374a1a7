r"""The bound of a VAE whose prior over its latents is a diffusion model (LSGM).

LSGM is Vahdat et al. 2021. The encoder is q(y | x) = N(m, diag s^2), the decoder p(x | y). The
diffusion model p(y) has the latents y as its data: z_t = alpha_t y + sigma_t eps and, as for all
data with a density (``GaussianDensity``), p(y | z_0) = N(z_0 / alpha_0, e^{gamma_0} I). The
variational inequality is used twice, over y and then over z given y:

    -log p(x) <= E_q(y|x) [-log p(x | y) + log q(y | x) - log p(y)]
    -log p(y) <= KL(q(z_1 | y) || p(z_1)) + E[-log p(y | z_0)]
                 + E_t,eps [1/2 gamma'(t) |eps - eps_hat|^2]

At T steps the last term is the sum of ``bound``. Two of the expectations have a closed form,

    E_q [log q(y | x)]  = -sum_i log s_i - d/2 (1 + log 2 pi)            minus the entropy of q
    E [-log p(y | z_0)] = d gamma_0 / 2 + d/2 (1 + log 2 pi)

for d dimensions, because (y - z_0 / alpha_0) e^{-gamma_0 / 2} is standard normal. Their sum is
``clean_end_term``, so

    -log p(x) <= KL(q(z_1 | y) || p(z_1))                                prior
               + E_q [-log p(x | y)]                                     reconstruction
               + clean_end + E [1/2 gamma'(t) |eps - eps_hat|^2]         diffusion

clean_end is negative where q is wider than the noise of z_0. Between that noise and s_i, the noise
of z resembles the noise of y itself; the last term grows by these levels, and the two cancel.
LSGM's theorem 1 is the cross entropy alone: E[-log p(y | z_0)] and the last term, without that of
the prior.
"""

import torch
from torch import Tensor

from .normal import Normal


def clean_end_term(q: Normal, gamma_0: Tensor) -> Tensor:
    """Return E[log q(y | x) - log p(y | z_0)] = sum_i (gamma_0 / 2 - log s_i), nats (B,).

    ``q``: of shape (B, *event); ``gamma_0``: ().
    """
    return (0.5 * gamma_0 - torch.log(q.std)).flatten(1).sum(1)
