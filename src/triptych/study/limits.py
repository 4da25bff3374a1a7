"""Note what limits all settings alike: a warm-up that never ends, noise that hides the data's levels."""

import math
from collections.abc import Iterator, Sequence

from triptych.config.check import warm_up_line
from triptych.run.parsing import to_float, to_int
from triptych.run.read import Run


def warm_ups(runs: Sequence[Run]) -> Iterator[str]:
    """Note fits whose learning rate never reached its value."""
    lines = dict[str, None]()
    for run in runs:
        warmup = to_int(run.config.get("lr_schedule.warmup_steps"))
        if warmup and run.steps and run.parameters and run.config.get("trained", "null") == "null":
            lines[warm_up_line(warmup, run.steps)] = None
    yield from (f"{line}." for line in lines if line)


def noise_floor(runs: Sequence[Run]) -> Iterator[str]:
    """Note a reconstruction of more than a third of the bound, where no network can lower it.

    Diffusion's decoder of levels has no weights: -log p(x | z_0) follows from the noise at gamma_min alone.
    """
    shares: dict[float, list[float]] = {}
    for run in runs:
        node, part = run.config, run.test.get("bpd_reconstruction")
        learned = ".learned_schedule." in node.get("schedule._target_", "")
        ours = node.get("model._target_", "").endswith(".Diffusion")
        fixed = ours and node.get("bound.decoder") == "categorical" and not learned
        gamma_min = to_float(node.get("schedule.gamma_min"))
        if part and fixed and math.isfinite(gamma_min) and 0 < run.bound < 3 * part.mean:
            shares.setdefault(gamma_min, []).append(part.mean / run.bound)
    for gamma_min, of in shares.items():
        share = " to ".join(dict.fromkeys(f"{x:.0%}" for x in (min(of), max(of))))
        noise = f"noise at schedule.gamma_min={gamma_min:g} hides the data's levels"
        fix = "a lower value moves these bits into the diffusion term"
        yield f"Reconstruction, the same for every network, is {share} of the bound: {noise}; {fix}."
