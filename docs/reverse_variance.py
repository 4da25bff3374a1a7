"""Print what T steps cost on a ring under an exact denoiser, for each reverse variance.

python docs/reverse_variance.py
"""

import math

import torch

from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear

N, LIMIT = 400_000, 8.288  # draws; diffusion term in continuous time, nats


def main() -> None:
    angle = torch.arange(8) * (2 * math.pi / 8)
    means = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    mixture = GaussianMixture(
        torch.full((8,), 1 / 8), means, torch.eye(2).expand(8, 2, 2) * 0.15**2
    )
    oracle, schedule = Oracle(mixture, VariancePreserving()), Linear(-10.0, 8.0)
    generator = torch.Generator().manual_seed(0)
    x = mixture.sample(N, generator)[0].float()
    t = ((torch.arange(N) + 0.5) / N)[torch.randperm(N, generator=generator)]
    eps = torch.randn(N, 2, generator=generator)
    others = mixture.sample(8192, generator)[0].float()
    bits = 1 / (2 * math.log(2))
    for variance in ("beta_tilde", "beta", "optimal"):
        row = []
        for steps in (10, 50, 250):
            bound = Bound(schedule, GaussianDensity(), steps, variance)
            bound.calibrate(oracle, others)
            nats = bound.diffusion(oracle, x, t, eps).nats.double()
            stderr = nats.std().item() / N**0.5 * bits
            row.append(f"T = {steps}: {(nats.mean().item() - LIMIT) * bits:6.3f} ± {stderr:.3f}")
        print(f"{variance:10}  {'   '.join(row)}  bits/dim")


if __name__ == "__main__":
    main()
