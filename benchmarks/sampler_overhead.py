"""Measure what a sampling step costs beside the network, against hand-written loops and diffusers.

    python benchmarks/sampler_overhead.py [--repeats 15] [--steps 50]

The denoiser's network is one multiplication, the batch 64 x 1x28x28. Ours is the code that a run
uses: ``Denoiser``, ``Sampler.__call__``, noise from the default generator. The hand-written loops
have precomputed coefficients and do nothing else. CPU seconds of one thread, one sampling pass of
each in turn (A B C A B C ...); ratios are of medians.
"""

import argparse
import os
import statistics

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from record import interleave, record

from triptych.diffusion.denoiser import Denoiser, Output
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.sampler import DDIM, Ancestral, DPMSolver, Heun, PredictorCorrector
from triptych.diffusion.schedule import Linear

SHAPE = (64, 1, 28, 28)
SCHEDULE = Linear(-13.3, 5.0)


class Half(torch.nn.Module):
    """The cheapest possible network."""

    def forward(self, z, gamma=None, condition=None):
        return z * 0.5


def hand_loops(steps):
    gamma = torch.linspace(5.0, -13.3, steps + 1)
    alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    ratio, fresh = alpha[1:] / alpha[:-1], -torch.expm1(gamma[1:] - gamma[:-1])

    def ddim():
        z = torch.randn(SHAPE)
        for a, e in zip(ratio.tolist(), (sigma[1:] - ratio * sigma[:-1]).tolist(), strict=True):
            z = z.mul(a).add_(z * 0.5, alpha=e)

    def ancestral():
        z = torch.randn(SHAPE)
        pull, std = -ratio * fresh * sigma[:-1], sigma[1:] * fresh.sqrt()
        for a, e, s in zip(ratio.tolist(), pull.tolist(), std.tolist(), strict=True):
            z = z.mul(a).add_(z * 0.5, alpha=e).add_(torch.randn_like(z), alpha=s)

    return {"hand DDIM": ddim, "hand ancestral": ancestral}


def ours(steps):
    denoiser = Denoiser(Half(), Output("epsilon"), VariancePreserving())
    samplers = {
        "triptych DDIM": DDIM(steps),
        "triptych ancestral": Ancestral(steps),
        "triptych DPM-Solver++(2M)": DPMSolver(steps),
        "triptych Heun (2 calls)": Heun(steps),
        "triptych predictor-corrector (2 calls)": PredictorCorrector(steps),
    }
    return {
        name: lambda sampler=sampler: sampler(denoiser, SCHEDULE, SHAPE)
        for name, sampler in samplers.items()
    }


def peers(steps):
    try:
        import diffusers
    except ImportError:
        print("diffusers is not installed: its rows are left out (pip install diffusers)")
        return {}
    diffusers.logging.set_verbosity_error()

    def descend(kind, **options):
        def run():
            scheduler = kind(num_train_timesteps=1000, **options)
            scheduler.set_timesteps(steps)
            z = torch.randn(SHAPE) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                z = scheduler.step(scheduler.scale_model_input(z, t) * 0.5, t, z).prev_sample

        return run

    return {
        "diffusers DDIM": descend(diffusers.DDIMScheduler, clip_sample=False),
        "diffusers DDPM": descend(diffusers.DDPMScheduler, clip_sample=False),
        "diffusers DPM-Solver++(2M)": descend(diffusers.DPMSolverMultistepScheduler),
        "diffusers Euler": descend(diffusers.EulerDiscreteScheduler),
    }


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = hand_loops(args.steps) | ours(args.steps) | peers(args.steps)
    seconds = interleave(runs, args.repeats)
    micro = {name: [1e6 * s / args.steps for s in laps] for name, laps in seconds.items()}
    median = {name: statistics.median(laps) for name, laps in micro.items()}

    print(
        f"microseconds a step, batch {SHAPE}, {args.steps} steps, {args.repeats} repeats, "
        "median (min-max)"
    )
    for name, laps in micro.items():
        noisy = any(word in name for word in ("ancestral", "DDPM", "corrector"))
        hand = median["hand ancestral" if noisy else "hand DDIM"]
        span = f"({min(laps):.1f}-{max(laps):.1f})"
        print(f"{name:40s} {median[name]:7.1f} {span:16s} {median[name] / hand:5.2f} x hand")
    ratios = {
        "DDIM / hand DDIM": median["triptych DDIM"] / median["hand DDIM"],
        "ancestral / hand ancestral": median["triptych ancestral"] / median["hand ancestral"],
    }
    if "diffusers DDIM" in median:
        ratios["DDIM / diffusers DDIM"] = median["triptych DDIM"] / median["diffusers DDIM"]
    record(f"sampler_overhead_{args.steps}", ratios, {"microseconds": micro})


if __name__ == "__main__":
    main()
