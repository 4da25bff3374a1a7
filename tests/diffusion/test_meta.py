"""Sample on PyTorch's ``meta`` device, without a GPU. Tensors on another device and hidden
``.item()`` calls raise."""

from itertools import cycle, product

import pytest
import torch

from triptych.diffusion.condition import Condition, Labels
from triptych.diffusion.denoiser import Denoiser, EDMOutput, LevelOutput, Output
from triptych.diffusion.guidance import Auto, Classifier, ClassifierFree
from triptych.diffusion.learned_schedule import LearnedEndpoints, Monotone
from triptych.diffusion.likelihood import Flow, dequantise
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.sampler import Ancestral, DPMSolver, Heun
from triptych.diffusion.schedule import Straight
from triptych.diffusion.wrappers import DynamicThreshold, StaticThreshold
from triptych.networks.classifier import ClassifierNetwork
from triptych.networks.mlp import MLP

from . import oracles
from .test_processes import PROCESSES
from .test_samplers import EVERY

META = torch.device("meta")
N, CLASSES, LEVELS = 3, 4, 5
SAMPLERS = {
    **EVERY,
    "ancestral": lambda steps: Ancestral(steps, variance="beta"),
    "heun": lambda steps: Heun(steps, grid="karras"),
    "dpm_solver": lambda steps: DPMSolver(steps, grid="time"),
}
SCHEDULES = {
    **oracles.SCHEDULES,
    "straight": Straight,
    "learned": lambda low, high: Monotone(low, high, hidden=4),
    "learned_endpoints": LearnedEndpoints,
}
OUTPUTS = {
    **{
        space: lambda space=space: Output(space)
        for space in ("x0", "epsilon", "score", "v", "velocity")
    },
    "edm": EDMOutput,
    "levels": lambda: LevelOutput(LEVELS),
}
GUIDANCE = {
    "none": lambda denoiser: denoiser,
    "classifier_free": lambda denoiser: ClassifierFree(denoiser, 2.0, rescale=0.5),
    "classifier": lambda denoiser: Classifier(
        denoiser, ClassifierNetwork((2,), CLASSES, width=4), 2.0
    ),
    "auto": lambda denoiser: Auto(denoiser, make(Output("v"), denoiser.process), 2.0),
    "static": lambda denoiser: StaticThreshold(ClassifierFree(denoiser, 2.0)),
    "dynamic": lambda denoiser: DynamicThreshold(ClassifierFree(denoiser, 2.0)),
}


def make(output, process) -> Denoiser:
    outputs, conditions = getattr(output, "per_dim", 1), {"label": Labels(CLASSES)}
    return Denoiser(
        MLP((2,), outputs=outputs, conditions=conditions, width=4, blocks=1), output, process
    )


def draw(sampler, schedule, output, guidance, process) -> torch.Tensor:
    """Draw samples with everything on the device. The class numbers are moved there."""
    denoiser = GUIDANCE[guidance](make(OUTPUTS[output](), process)).to(META).eval()
    condition = Condition(label=torch.arange(N) % CLASSES).to(META)
    schedule = SCHEDULES[schedule](-6.0, 4.0).to(META)
    return SAMPLERS[sampler](3)(denoiser, schedule, (N, 2), condition=condition, device=META)


def check(combinations) -> None:
    for combination, process in zip(combinations, cycle(PROCESSES.values()), strict=False):
        try:
            x = draw(*combination, process)
        except Exception as error:
            raise AssertionError(f"{combination}, {process}: {error}") from error
        assert x.device == META and x.shape == (N, 2), combination


def test_meta_device_raises_for_cpu_tensor_and_item():
    """These tests rely on it: the device raises for a tensor elsewhere and when a number is
    read."""
    there = torch.ones(2, device=META)
    for wrong in (
        lambda: there + torch.ones(2),
        lambda: bool(there.any()),
        there.sum().item,
        there.cpu,
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrong()


def test_sampler_schedule_output_guidance_pairs_draw_on_meta_device():
    """Each sampler runs under each schedule, output and guidance, and each output under the
    others."""
    schedules, guidance = [*SCHEDULES], [*GUIDANCE]
    places = product(enumerate(SAMPLERS), enumerate(OUTPUTS))
    check(
        [(sampler, schedules[(i - j) % len(schedules)], output, guidance[(i + j) % len(guidance)])
         for (i, sampler), (j, output) in places]
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler_draws_with_all_combinations_on_meta_device(sampler):
    check(list(product([sampler], SCHEDULES, OUTPUTS, GUIDANCE)))


@pytest.mark.parametrize("probes", [None, 2])
def test_likelihood_flow_runs_on_meta_device(probes):
    """The flow's rate and divergence run on the device. The solver itself reads errors to choose
    its steps, so it is left out."""
    denoiser = make(Output("v"), VariancePreserving()).to(META).eval()
    u = torch.zeros(N, 2, dtype=torch.float64, device=META)
    probe = None if probes is None else torch.ones(probes, N, 2, device=META)
    condition = Condition(label=torch.zeros(N, dtype=torch.long)).to(META)
    flow = Flow(denoiser, condition, probe, 1e-3)
    rate = flow._rate(torch.zeros((), dtype=torch.float64, device=META), u)
    assert rate.device == META and rate.shape == (N, 2 + (probes or 1))
    for how, levels in (("none", None), ("uniform", 5), ("lossless", 5)):
        noise = torch.zeros(N, 2, dtype=torch.float64, device=META)
        assert dequantise(how, u.float(), -6.0, noise, levels)[0].device == META
