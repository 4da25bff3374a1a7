"""Guidance at its fixed points, and against Bayes' rule where the truth is known."""

import pytest
import torch

from triptych.diffusion.condition import Condition, Labels
from triptych.diffusion.guidance import Auto, Classifier, ClassifierFree, extrapolate
from triptych.diffusion.measures import sliced_wasserstein
from triptych.diffusion.mixture import ExactClassifier
from triptych.diffusion.prediction import SPACES
from triptych.diffusion.process import VarianceExploding
from triptych.diffusion.sampler import Ancestral, DPMSolver
from triptych.diffusion.schedule import Linear
from triptych.diffusion.wrappers import DynamicThreshold, StaticThreshold

from .oracles import (
    Wrong,
    generator,
    given,
    lopsided,
    network,
    noise_floor,
    normal,
    oracle,
    refused,
    ring,
)
from .test_processes import PROCESSES

processes = pytest.mark.parametrize("process", PROCESSES)
GAMMA = torch.tensor([-3.0, 0.0, 2.5], dtype=torch.float64)
LABELS = Condition(label=torch.tensor([0, 2, 1]))


class Labelled(Wrong):
    """A network with an error that depends on the class."""

    conditions = {"label": Labels(3)}

    def forward(self, z, gamma, condition):
        shift = 0 if condition is None else condition.label.view(-1, *(1,) * (z.ndim - 1)) - 1.5
        return super().forward(z, gamma, condition) + shift


def equal(one, other):
    return all(torch.equal(one.view(view), other.view(view)) for view in SPACES)


@pytest.mark.parametrize("space", SPACES)
def test_classifier_free_scale_1_is_conditional_and_0_unconditional(space):
    model, z = network(Labelled(), space), normal(3, 4)
    assert model.conditional
    assert equal(ClassifierFree(model, 1.0)(z, GAMMA, LABELS), model(z, GAMMA, LABELS))
    assert equal(ClassifierFree(model, 0.0)(z, GAMMA, LABELS), model(z, GAMMA))
    assert equal(ClassifierFree(model, 3.0)(z, GAMMA), model(z, GAMMA))
    sampler, schedule = Ancestral(5), Linear(-6.0, 4.0)
    for scale, labels in ((1.0, LABELS), (0.0, None)):
        pairs = ((ClassifierFree(model, scale), LABELS), (model, labels))
        drawn = [sampler(m, schedule, (3, 4), generator=generator(), condition=c) for m, c in pairs]
        assert torch.equal(*drawn)


@pytest.mark.parametrize("space", SPACES)
def test_classifier_free_is_the_same_in_every_space(space):
    model, z, scale = network(Labelled(), space), normal(3, 4), 2.5
    guess = ClassifierFree(model, scale)(z, GAMMA, LABELS)
    with_class, without = model(z, GAMMA, LABELS), model(z, GAMMA)
    for view in SPACES:
        u, c = without.view(view), with_class.view(view)
        torch.testing.assert_close(guess.view(view), u + scale * (c - u))
        torch.testing.assert_close(
            extrapolate(without, with_class, scale).view(view), u + scale * (c - u)
        )


def test_guidance_interval_limits_scale_to_its_levels():
    model, z = network(Labelled(), "v"), normal(3, 4)
    guided, always = ClassifierFree(model, 3.0, interval=[-1.0, 1.0]), ClassifierFree(model, 3.0)
    guess = guided(z, GAMMA, LABELS).x0
    torch.testing.assert_close(guess[1], always(z, GAMMA, LABELS).x0[1])
    torch.testing.assert_close(guess[[0, 2]], model(z, GAMMA, LABELS).x0[[0, 2]])
    assert equal(
        guided(z, torch.tensor(3.0).double(), LABELS), model(z, torch.tensor(3.0).double(), LABELS)
    )
    # (low, high], as for sigma in Kynkaanniemi et al. 2024.
    for gamma, inside in ((-1.0, False), (1.0, True)):
        level = torch.tensor(gamma, dtype=torch.float64)
        said, alone = (g(z, level, LABELS).x0 for g in (guided, model))
        assert torch.equal(said, always(z, level, LABELS).x0 if inside else alone)
    # With a scale of 0, the prediction is unconditional in the interval and conditional elsewhere.
    off = ClassifierFree(model, 0.0, interval=[-1.0, 1.0])(z, GAMMA, LABELS).x0
    torch.testing.assert_close(off[1], model(z, GAMMA).x0[1])
    torch.testing.assert_close(off[[0, 2]], model(z, GAMMA, LABELS).x0[[0, 2]])


@pytest.mark.parametrize("space", ["v", "epsilon", "x0"])
def test_guidance_rescale_matches_lin_2024_algorithm_2(space):
    """Lin et al. 2024, algorithm 2, in numpy. x_pos and x_neg are outputs of the network, in the
    paper in v."""
    model, z = network(Labelled(), space), normal(3, 50)
    pos, neg = (model(z, GAMMA, told).value.numpy() for told in (LABELS, None))
    cfg = neg + 7.5 * (pos - neg)
    rescaled = cfg * (pos.std(1, ddof=1, keepdims=True) / cfg.std(1, ddof=1, keepdims=True))
    wanted = 0.7 * rescaled + (1 - 0.7) * cfg
    guess = ClassifierFree(model, 7.5, rescale=0.7)(z, GAMMA, LABELS)
    torch.testing.assert_close(guess.view(space), torch.from_numpy(wanted), rtol=1e-6, atol=1e-9)


@processes
def test_exact_classifier_guidance_gives_conditional_score(process):
    """score(z) + grad log p(k | z) = score(z | k), for every component, level and process."""
    truth = oracle(lopsided(), PROCESSES[process])
    guided = Classifier(truth, ExactClassifier(truth.mixture, truth.process))
    z = truth.process.diffuse(normal(3, 2), GAMMA, normal(3, 2, seed=1))
    torch.testing.assert_close(guided(z, GAMMA, LABELS).score, truth(z, GAMMA, LABELS).score)
    assert equal(guided(z, GAMMA), truth(z, GAMMA))
    zero = Classifier(truth, guided.classifier, scale=0.0)
    assert equal(zero(z, GAMMA, LABELS), truth(z, GAMMA))
    double = Classifier(truth, guided.classifier, scale=2.0)(z, GAMMA, LABELS).score
    plain, conditional = truth(z, GAMMA).score, truth(z, GAMMA, LABELS).score
    torch.testing.assert_close(double, plain + 2 * (conditional - plain))
    # The items without a label are not guided.
    some = LABELS.drop({"label": torch.tensor([True, False, False])})
    pushed = guided(z, GAMMA, some).score
    torch.testing.assert_close(pushed, torch.cat([plain[:1], conditional[1:]]))


@pytest.mark.parametrize("make", [Ancestral, DPMSolver])
def test_exact_classifier_guidance_samples_the_conditional(make):
    """At s = 1, under no_grad like samplers: each component is at the noise floor of its own true
    samples."""
    n, parts = 2000, lopsided()
    truth = oracle(parts)
    guided = Classifier(truth, ExactClassifier(truth.mixture, truth.process))
    for k in range(3):
        alone = oracle([torch.ones(1).double(), parts[1][k : k + 1], parts[2][k : k + 1]]).mixture
        floor = noise_floor(sliced_wasserstein, lambda i: alone.sample(n, generator(50 + i))[0])  # noqa: B023
        labels = Condition(label=torch.full((n,), k))
        x = make(40)(guided, Linear(-9.0, 5.0), (n, 2), generator=generator(k), condition=labels)
        assert sliced_wasserstein(x, alone.sample(n, generator(9))[0]) < 1.5 * floor[-1]
        unguided = make(40)(truth, Linear(-9.0, 5.0), (n, 2), generator=generator(k))
        assert sliced_wasserstein(unguided, alone.sample(n, generator(9))[0]) > 4 * floor[-1]


def test_autoguidance_extrapolates_from_weak_model():
    good, weak, z = network(Labelled(), "v"), network(Labelled(), "epsilon"), normal(3, 4)
    assert equal(Auto(good, weak, 1.0)(z, GAMMA, LABELS), good(z, GAMMA, LABELS))
    guess = Auto(good, weak, 2.0)(z, GAMMA, LABELS).x0
    torch.testing.assert_close(guess, 2 * good(z, GAMMA, LABELS).x0 - weak(z, GAMMA, LABELS).x0)


def test_guidance_and_threshold_wrappers_can_be_nested():
    truth = oracle(ring())
    classifier = ExactClassifier(truth.mixture, truth.process)
    auto = Auto(Classifier(truth, classifier), truth, 1.5)
    stack = DynamicThreshold(ClassifierFree(StaticThreshold(auto, 2.0), 2.0))
    assert stack.conditional and stack.process is truth.process
    labels = Condition(label=torch.arange(16) % 8)
    x = DPMSolver(10)(stack, Linear(-6.0, 4.0), (16, 2), generator=generator(), condition=labels)
    assert x.isfinite().all() and x.abs().max() < 1.1


def test_guidance_refuses_unsuitable_denoisers_and_labels():
    blind = network(Wrong(), "v")
    assert not blind.conditional
    refused(lambda: ClassifierFree(blind, 2.0), "guidance.scale=2.0", "model.conditional=true")
    refused(lambda: ClassifierFree(StaticThreshold(blind), 2.0), "model.conditional=true")
    model = network(Labelled(), "v")
    refused(
        lambda: ClassifierFree(model, 2.0, interval=[1.0, -1.0]), "guidance.interval=[1.0, -1.0]"
    )
    exploding = network(Wrong(), "v", VarianceExploding())
    refused(lambda: Auto(model, exploding), "guidance.weak", "VarianceExploding")


def test_guidance_parts_keeps_other_conditions_in_both_predictions():
    truth = given("low")
    truth.conditions["label"] = Labels(5)
    z, gamma = torch.randn(5, 2, dtype=torch.float64), torch.tensor(0.5).double()
    told = Condition(low=torch.randn(5, 3), label=torch.arange(5))
    kept = ClassifierFree(truth, 3.0, parts=["label"])(z, gamma, told)
    # The truth does not read the label, so guidance by it changes nothing.
    torch.testing.assert_close(kept.score, truth(z, gamma, told).score)
    pushed = ClassifierFree(truth, 3.0, parts=["low", "label"])(z, gamma, told)
    without, own = truth(z, gamma).score, truth(z, gamma, told).score
    torch.testing.assert_close(pushed.score, without + 3 * (own - without))
