"""Denoisers: the meaning of a network's output, and x0 as the mean of a categorical posterior."""

import pytest
import torch
from torch import nn

from triptych.diffusion.denoiser import Denoiser, LevelOutput, Output, level_centres
from triptych.diffusion.process import VariancePreserving

from .oracles import generator, network, normal, refused


class Constant(nn.Module):
    """A network that gives the same logits (K, *event) for every input."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, z, gamma, condition):
        return self.logits.expand(len(z), *self.logits.shape)


def test_denoiser_passes_z_gamma_per_item_and_condition_to_network():
    seen = []

    class Spy(nn.Module):
        def forward(self, z, gamma, condition):
            seen.append((z, gamma, condition))
            return z.to(torch.bfloat16)

    z, condition = torch.randn(3, 2, 4), torch.tensor([2, 0, 1])
    guess = network(Spy(), "v")(z, torch.tensor(1.5), condition)
    assert seen[0][0] is z and seen[0][2] is condition
    assert seen[0][1].tolist() == [1.5, 1.5, 1.5]
    assert guess.v.dtype == guess.x0.dtype == torch.float32  # autocast covers the network only
    alpha, sigma = VariancePreserving().alpha_sigma(torch.tensor([1.0, 2.0, 3.0]))
    many = network(Spy(), "v")(z, torch.tensor([1.0, 2.0, 3.0]))
    assert seen[1][1].tolist() == [1.0, 2.0, 3.0] and seen[1][2] is None
    torch.testing.assert_close(many.alpha.flatten(), alpha)
    torch.testing.assert_close(many.sigma.flatten(), sigma)


def test_output_clip_applies_in_eval_mode_only():
    """As in the code of Ho et al. 2020: p_mean_variance clips x0, the training loss does not."""
    z, output = 9 * torch.randn(20, 2, generator=generator()), Output("x0", clip=1.0)
    denoiser = Denoiser(Constant(torch.tensor([3.0, -0.5])), output, VariancePreserving())
    assert denoiser(z, torch.tensor(0.0)).x0.unique().tolist() == [-0.5, 3.0]
    assert denoiser.eval()(z, torch.tensor(0.0)).x0.unique().tolist() == [-0.5, 1.0]


def levels_denoiser(logits):
    return Denoiser(Constant(logits), LevelOutput(len(logits)), VariancePreserving())


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_levels_with_log_priors_is_the_exact_posterior_mean(levels):
    """For independent dimensions with logits = log prior. The truth enumerates every point of the
    grid in float64."""
    draws = generator(levels)
    prior = torch.rand(levels, 2, generator=draws, dtype=torch.float64) + 0.05
    prior = prior / prior.sum(0)
    centres = torch.linspace(-1, 1, levels, dtype=torch.float64)
    points = torch.cartesian_prod(centres, centres)
    mass = torch.outer(prior[:, 0], prior[:, 1]).flatten()
    for gamma in torch.tensor([-8.0, -3.0, -1.0, 0.0, 2.0, 8.0]).double():
        alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        noise = torch.randn(50, 2, generator=draws, dtype=torch.float64)
        z = alpha * points[torch.randint(len(points), (50,), generator=draws)] + sigma * noise
        likelihood = torch.distributions.Normal(alpha * points, sigma).log_prob(z[:, None]).sum(2)
        exact = (mass.log() + likelihood).softmax(1) @ points
        guess = levels_denoiser(prior.log())(z, gamma)
        assert guess.own.name == "x0"
        torch.testing.assert_close(guess.x0, exact, rtol=0, atol=1e-7)  # centres are float32
        # In float32 the rounding of z and alpha c, U each, changes a logit by at most U spread /
        # sigma^2.
        single = levels_denoiser(prior.log().float())(z.float(), gamma.float().expand(50))
        assert (single.x0 - exact).abs().max() < 1e-6 + 4 * 2.0**-24 / sigma**2


def test_level_output_combines_network_prior_with_own_likelihood():
    """For dependent dimensions, logits = log prior given the *other* dimensions of z give the joint
    posterior mean."""
    joint = torch.rand(4, 4, generator=generator(), dtype=torch.float64) ** 3
    joint = joint / joint.sum()
    centres = torch.linspace(-1, 1, 4, dtype=torch.float64)
    gamma = torch.tensor(-0.5).double()
    alpha, sigma = VariancePreserving().alpha_sigma(gamma)

    def likelihoods(z):
        """Return the likelihood of each level for each dimension of z, (B, K), up to a factor."""
        return torch.exp(
            -((z.unsqueeze(1) - alpha * centres[:, None]) ** 2) / (2 * sigma**2)
        ).unbind(2)

    class Others(nn.Module):
        def forward(self, z, gamma, condition):
            first, second = likelihoods(z)
            return torch.stack([second @ joint.T, first @ joint], 2).log()

    z = normal(30, 2)
    posterior = torch.einsum("ij,bi,bj->bij", joint, *likelihoods(z))
    posterior = posterior / posterior.sum((1, 2), keepdim=True)
    exact = torch.stack([posterior.sum(2) @ centres, posterior.sum(1) @ centres], 1)
    guess = Denoiser(Others(), LevelOutput(4), VariancePreserving())(z, gamma)
    torch.testing.assert_close(guess.x0, exact, rtol=0, atol=1e-7)


def test_level_output_accepts_images_and_gamma_per_item():
    logits, z = normal(5, 1, 3, 2).float(), normal(4, 1, 3, 2, seed=1).float()
    gamma = torch.tensor([-3.0, 0.0, 1.0, 5.0])
    whole = levels_denoiser(logits)(z, gamma).x0
    assert whole.shape == z.shape
    for i in range(4):
        torch.testing.assert_close(whole[i], levels_denoiser(logits)(z[i : i + 1], gamma[i]).x0[0])
    assert LevelOutput(5).per_dim == 5


def test_level_centres_span_minus_one_to_one():
    assert level_centres(2).tolist() == [-1, 1]
    torch.testing.assert_close(level_centres(17), torch.arange(17) / 8 - 1)
    torch.testing.assert_close(level_centres(256), torch.arange(256) / 127.5 - 1)


def test_output_refuses_unknown_space_and_bad_levels():
    refused(lambda: Output("x00"), "space='x00'", "x0, epsilon, score, v")
    for levels in (1, 0, None):
        refused(lambda levels=levels: LevelOutput(levels), "objective=levels", f"levels={levels}")
