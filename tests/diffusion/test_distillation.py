"""Progressive distillation against the published algorithm, in its own variables, and its
purpose."""

import numpy as np
import pytest
import torch

from triptych.diffusion.distillation import distilled
from triptych.diffusion.loss import Simple, TruncatedSNR
from triptych.diffusion.objective import Objective
from triptych.diffusion.prediction import Prediction
from triptych.diffusion.process import expand_like
from triptych.diffusion.sampler import DDIM
from triptych.diffusion.schedule import Cosine, Linear

from .oracles import Scaled, Wrong, generator, lopsided, network, normal, oracle, refused
from .test_processes import PROCESSES

STEPS = 4
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def batch(process, schedule):
    x, eps = normal(2, 8, 2)
    t = (torch.arange(8).double() % STEPS + 1) / STEPS
    return x, eps, t, process.diffuse(x, schedule.gamma(t), eps)


@processes
def test_distilled_target_matches_progressive_distillation_algorithm_2(process):
    """Salimans & Ho 2022: x~ from z'', after two DDIM steps of the teacher from z."""
    schedule, teacher = Cosine(-6.0, 5.0), network(Wrong(), "v", process)
    _, _, t, z = batch(process, schedule)

    def scales(t):
        found = process.alpha_sigma(schedule.gamma(torch.as_tensor(t, dtype=torch.float64)))
        return [a.numpy()[:, None] for a in found]

    def x_hat(z, t):
        return teacher(torch.as_tensor(z), schedule.gamma(torch.as_tensor(t))).x0.detach().numpy()

    t_0, z_0 = t.numpy(), z.numpy()
    t_1, t_2 = t_0 - 0.5 / STEPS, t_0 - 1 / STEPS
    (a_0, s_0), (a_1, s_1), (a_2, s_2) = scales(t_0), scales(t_1), scales(t_2)
    first = x_hat(z_0, t_0)
    z_1 = a_1 * first + s_1 / s_0 * (z_0 - a_0 * first)
    second = x_hat(z_1, t_1)
    z_2 = a_2 * second + s_2 / s_1 * (z_1 - a_1 * second)
    target = (z_2 - s_2 / s_0 * z_0) / (a_2 - s_2 / s_0 * a_0)
    x, eps = distilled(teacher, schedule, z, t, STEPS)
    np.testing.assert_allclose(x.numpy(), target, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(process.diffuse(x, schedule.gamma(t), eps), z)
    # One step of the student leads to the same point as two of the teacher.
    here, there = (
        [expand_like(a, z) for a in process.alpha_sigma(schedule.gamma(at))]
        for at in (t, t - 1 / STEPS)
    )
    landed = Prediction("x0", x, z, *here).at(*there)
    np.testing.assert_allclose(landed.numpy(), z_2, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("steps", [10**3, 10**6, 10**9])
def test_distilled_target_converges_to_teacher_x0_with_steps(steps):
    """Both steps vanish as T grows, so x~ tends to the teacher's x_hat(z), in float32 too."""
    schedule, teacher = Cosine(-10.0, 8.0), oracle(lopsided())
    x, eps = normal(2, 200, 2).float()
    t = (torch.floor(torch.rand(200, generator=generator(1)).double() * steps) + 1) / steps
    gamma = schedule.gamma(t).float()
    z = teacher.process.diffuse(x, gamma, eps)
    target, _ = distilled(teacher, schedule, z, t, steps)
    assert target.dtype == torch.float32
    # The difference is of order 1 / T, plus float32's rounding of a quotient by the small step.
    torch.testing.assert_close(target, teacher(z, gamma).x0, rtol=0, atol=2 / steps + 2e-5)


class Student(torch.nn.Module):
    """A network that returns exactly its target."""

    def __init__(self, teacher, schedule):
        super().__init__()
        self.teacher, self.schedule, self.process = teacher, schedule, teacher.process

    def forward(self, z, gamma, condition=None):
        t = self.schedule.t_of(gamma.expand(len(z)))
        x, _ = distilled(self.teacher, self.schedule, z, t, STEPS, condition)
        alpha, sigma = self.process.alpha_sigma(expand_like(gamma, z))
        return Prediction("x0", x, z, alpha, sigma)


@processes
def test_perfect_student_has_zero_loss_and_halves_sampler_steps(process):
    schedule, teacher = Linear(-6.0, 5.0), oracle(lopsided(), process)
    x, eps, t, _ = batch(process, schedule)
    student = Student(teacher, schedule)
    for loss in (Simple(), TruncatedSNR()):
        objective = Objective("x0", loss, STEPS)
        assert objective(student, schedule, x, t - 0.1 / STEPS, eps).nats.min() > 1e-3
        objective.teacher = teacher
        assert objective(student, schedule, x, t - 0.1 / STEPS, eps).nats.max() < 1e-12

    def drawn(who, steps):
        sampler = DDIM(steps, grid="time")
        return sampler(who, schedule, (16, 2), generator=generator(1), dtype=torch.float64)

    twice = drawn(teacher, 2 * STEPS)
    torch.testing.assert_close(drawn(student, STEPS), twice, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(drawn(teacher, STEPS), twice, atol=1e-2)


def test_distillation_gradient_does_not_flow_through_teacher():
    schedule, process = Linear(-6.0, 5.0), PROCESSES["vp"]
    scaled = Scaled()
    taught = network(scaled, "v", process)
    x, eps, t, z = batch(process, schedule)
    objective = Objective("v", Simple(), STEPS)
    objective.teacher = taught
    losses = objective(taught, schedule, x, t - 0.1 / STEPS, eps)
    (slope,) = torch.autograd.grad(losses.nats.sum(), scaled.gain)
    found = distilled(taught, schedule, z, t, STEPS)
    alpha, sigma = process.alpha_sigma(schedule.gamma(t))
    target = expand_like(alpha, z) * found[1] - expand_like(sigma, z) * found[0]
    said = Wrong()(z, schedule.gamma(t), None)
    torch.testing.assert_close(slope, (2 * (said - target) * said).sum(), rtol=1e-6, atol=0)


def test_distillation_moves_teacher_to_device_of_student():
    """Lightning does not move the teacher to the device, because it is no part of the model."""
    moved = []

    class Teacher(torch.nn.Module):
        process = PROCESSES["vp"]

        def to(self, device):
            moved.append(device.type)
            return self

        def forward(self, z, gamma, condition=None):
            assert moved
            return taught(z, gamma, condition)

    schedule, taught = Linear(-6.0, 5.0), network(Wrong(), "v", PROCESSES["vp"])
    x, eps, t, _ = batch(PROCESSES["vp"], schedule)
    objective = Objective("v", Simple(), STEPS)
    objective.teacher = Teacher()
    objective(taught, schedule, x, t - 0.1 / STEPS, eps)
    assert moved == ["cpu"]


def test_objective_teacher_requires_steps():
    words = ("objective.teacher=run", "objective.steps=T")
    refused(lambda: Objective("v", Simple(), teacher="run"), *words)
    learned = {"variance": "learned", "teacher": "run"}
    refused(
        lambda: Objective("v", Simple(), 4, **learned),
        "objective.teacher=run",
        "a learned variance",
    )
