"""Measure sample quality by the number of denoiser calls, for our samplers and diffusers' best.

    python benchmarks/sampler_quality.py [--n 10000] [--seeds 3]

The data are eight Gaussians (std .08) on the unit circle with their exact denoiser, and gamma runs
from 10.1 to -9.2 as in diffusers' schedule. The table has the sliced Wasserstein distance to true
points, median over seeds, and the same distance between true sets. diffusers' row is its
DPM-Solver++(2M) on its log-SNR grid and schedule: of the peers that we measured, the best up to 20
calls.
"""

import argparse
import math
import statistics

import torch
from record import record

from triptych.diffusion.measures import sliced_wasserstein
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.sampler import DDIM, Ancestral, DPMSolver, Heun, PredictorCorrector
from triptych.diffusion.schedule import Linear

CALLS = (5, 10, 20, 50, 100)
SCHEDULE = Linear(-9.2, 10.1)
ANGLES = [2 * math.pi * k / 8 for k in range(8)]
MIXTURE = GaussianMixture(
    [1 / 8] * 8,
    [[math.cos(a), math.sin(a)] for a in ANGLES],
    [[[0.08**2, 0.0], [0.0, 0.08**2]]] * 8,
)


def ours():
    """Return {name: (calls, n, generator) -> points}."""
    kinds = {
        "triptych dpm_solver": DPMSolver,
        "triptych ddim": DDIM,
        "triptych ancestral": Ancestral,
        "triptych predictor_corrector": PredictorCorrector,
        "triptych heun": lambda steps: Heun(steps, grid="karras"),
    }
    oracle = Oracle(MIXTURE, VariancePreserving())

    def draw(kind, calls, n, generator):
        sampler = kind(max(1, calls // kind(1).calls))
        return sampler(oracle, SCHEDULE, (n, 2), generator=generator, dtype=torch.float64)

    return {name: lambda *a, kind=kind: draw(kind, *a) for name, kind in kinds.items()}


def theirs():
    """Return diffusers' row, if it is installed."""
    try:
        import diffusers
    except ImportError:
        print("diffusers is not installed: its row is left out (pip install diffusers)")
        return {}
    diffusers.logging.set_verbosity_error()
    oracle = Oracle(MIXTURE, VariancePreserving())

    def draw(calls, n, generator):
        scheduler = diffusers.DPMSolverMultistepScheduler(
            num_train_timesteps=1000, use_lu_lambdas=True, prediction_type="sample"
        )
        scheduler.set_timesteps(calls)
        z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        for sigma, t in zip(scheduler.sigmas.double(), scheduler.timesteps, strict=False):
            z = scheduler.step(oracle(z, 2 * sigma.log()).x0, t, z).prev_sample
        return z

    return {"diffusers DPM++2M, log SNR": draw}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10000)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)

    def truth(seed):
        return MIXTURE.sample(args.n, torch.Generator().manual_seed(1000 + seed))[0]

    floor = sorted(sliced_wasserstein(truth(2 * i), truth(2 * i + 1)) for i in range(5))
    print(f"{'calls of the denoiser':30s}" + "".join(f"{calls:8d}" for calls in CALLS))
    figures: dict[str, list[float]] = {}
    for name, draw in (ours() | theirs()).items():
        row = figures[name] = []
        for calls in CALLS:
            distances = [
                sliced_wasserstein(
                    draw(calls, args.n, torch.Generator().manual_seed(s)), truth(100 + s)
                )
                for s in range(args.seeds)
            ]
            row.append(statistics.median(distances))
        print(f"{name:30s}" + "".join(f"{d:8.3f}" for d in row), flush=True)
    best = [min(row[i] for n, row in figures.items() if "triptych" in n) for i in range(len(CALLS))]
    peer = next((row for name, row in figures.items() if "diffusers" in name), [])
    ratios = {
        f"distance at {c} calls / theirs": b / d for c, b, d in zip(CALLS, best, peer, strict=False)
    }
    record("sampler_quality", ratios, {"calls": CALLS, "floor": floor[2], **figures})
    print(f"true against true: {floor[2]:.3f} ({floor[0]:.3f} to {floor[-1]:.3f})")


if __name__ == "__main__":
    main()
