"""Drawing on PyTorch's ``meta`` device, without a GPU: a tensor elsewhere and a hidden ``.item()`` raise."""

from itertools import cycle, product

import pytest
import torch

from triptych.diffusion.condition import Condition, Labels
from triptych.diffusion.denoiser import Denoiser, EDMOutput, LevelOutput, Output
from triptych.diffusion.guidance import Auto, Classifier, ClassifierFree
from triptych.diffusion.learned_schedule import LearnedEndpoints, Monotone
from triptych.diffusion.likelihood import Flow, dequantise
from triptych.diffusion.process import (
    Preconditioned,
    Rectified,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from triptych.diffusion.sampler import (
    DDIM,
    EDM,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    Euler,
    Heun,
    Langevin,
    PredictorCorrector,
)
from triptych.diffusion.schedule import BetaLinear, Cosine, Linear, Sigmoid, Straight
from triptych.diffusion.wrappers import DynamicThreshold, StaticThreshold
from triptych.networks.classifier import ClassifierNetwork
from triptych.networks.mlp import MLP

META = torch.device("meta")
N, CLASSES, LEVELS = 3, 4, 5
SAMPLERS = {
    "ancestral": lambda: Ancestral(2, variance="beta"),
    "ddim": lambda: DDIM(2, eta=0.5),
    "euler": lambda: Euler(2),
    "heun": lambda: Heun(2, grid="karras"),
    "edm": lambda: EDM(2, churn=1.0, low=0.1, high=5.0),
    "dpm_solver": lambda: DPMSolver(3, grid="time"),
    "predictor_corrector": lambda: PredictorCorrector(2, inner=1),
    "langevin": lambda: Langevin(2, inner=1),
    "annealed_langevin": lambda: AnnealedLangevin(2, inner=1),
}
SCHEDULES = {
    "linear": lambda: Linear(-6.0, 4.0),
    "cosine": lambda: Cosine(-6.0, 4.0),
    "beta_linear": lambda: BetaLinear(-6.0, 4.0),
    "sigmoid": lambda: Sigmoid(-6.0, 4.0),
    "straight": lambda: Straight(-6.0, 4.0),
    "learned": lambda: Monotone(-6.0, 4.0, hidden=4),
    "learned_endpoints": lambda: LearnedEndpoints(-6.0, 4.0),
}
OUTPUTS = {
    **{space: lambda space=space: Output(space) for space in ("x0", "epsilon", "score", "v", "velocity")},
    "edm": EDMOutput,
    "levels": lambda: LevelOutput(LEVELS),
}
GUIDANCE = {
    "none": lambda denoiser: denoiser,
    "classifier_free": lambda denoiser: ClassifierFree(denoiser, 2.0, rescale=0.5),
    "classifier": lambda denoiser: Classifier(denoiser, ClassifierNetwork((2,), CLASSES, width=4), 2.0),
    "auto": lambda denoiser: Auto(denoiser, make(Output("v"), type(denoiser.process)()), 2.0),
    "static": lambda denoiser: StaticThreshold(ClassifierFree(denoiser, 2.0)),
    "dynamic": lambda denoiser: DynamicThreshold(ClassifierFree(denoiser, 2.0)),
}
PROCESSES = (VariancePreserving, VarianceExploding, SubVariancePreserving, Rectified, Preconditioned)


def make(output, process) -> Denoiser:
    network = MLP(
        (2,), outputs=getattr(output, "per_dim", 1), conditions={"label": Labels(CLASSES)}, width=4, blocks=1
    )
    return Denoiser(network, output, process)


def draw(sampler, schedule, output, guidance, process) -> torch.Tensor:
    """Samples, all of whose parts are on the device but for the labels' numbers, which are moved there."""
    denoiser = GUIDANCE[guidance](make(OUTPUTS[output](), process())).to(META).eval()
    condition = Condition(label=torch.arange(N) % CLASSES).to(META)
    return SAMPLERS[sampler]()(
        denoiser, SCHEDULES[schedule]().to(META), (N, 2), condition=condition, device=META
    )


def check(combinations) -> None:
    for combination, process in zip(combinations, cycle(PROCESSES), strict=False):
        try:
            x = draw(*combination, process)
        except Exception as error:
            raise AssertionError(f"{combination}, {process.__name__}: {error}") from error
        assert x.device == META and x.shape == (N, 2), combination


def test_the_device_would_tell():
    """What these tests rely on: it raises for a tensor elsewhere, and for a number that is asked for."""
    there = torch.ones(2, device=META)
    for wrong in (lambda: there + torch.ones(2), lambda: bool(there.any()), there.sum().item, there.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrong()


def test_each_pair_of_sampler_schedule_output_and_guidance_draws():
    """Each sampler under each schedule, output and guidance, and each output under the others."""
    schedules, guidance = [*SCHEDULES], [*GUIDANCE]
    places = product(enumerate(SAMPLERS), enumerate(OUTPUTS))
    check(
        [(sampler, schedules[(i - j) % 6], output, guidance[(i + j) % 6])
         for (i, sampler), (j, output) in places]
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler_draws_under_each_schedule_output_and_guidance(sampler):
    check(list(product([sampler], SCHEDULES, OUTPUTS, GUIDANCE)))


@pytest.mark.parametrize("probes", [None, 2])
def test_the_flow_of_a_likelihood(probes):
    """Its rate and its divergence; the solver between them chooses steps by the error that it reads."""
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
