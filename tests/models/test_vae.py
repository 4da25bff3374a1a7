"""VAE and hierarchical VAE, compared with exact densities."""

import math

import pytest
import torch

from tests.diffusion.oracles import cubature, refused
from tests.diffusion.steps import training_noise
from triptych.data.batch import Batch
from triptych.diffusion.mixture import GaussianMixture
from triptych.models.latent import VAE, HierarchicalVAE, LatentModel
from triptych.networks.conv_ladder import ConvLadder
from triptych.networks.ladder import MLPLadder

from .options import OPTIONS


def make(network, levels=None, **options) -> LatentModel:
    kind = VAE if len(network.encoders) == 1 else HierarchicalVAE
    options = OPTIONS | {"repeats": 2} | options
    return kind(network, levels=levels, discrete=levels is not None, **options)


def batch(x: torch.Tensor) -> Batch:
    return Batch(x, None, torch.arange(len(x)))


def principal_components(d: int, q: int, noise: float) -> tuple[MLPLadder, GaussianMixture]:
    """Return a linear VAE with the parameters of probabilistic PCA (Tipping & Bishop 1999).

    The second result is its Gaussian.
    x = W z + m + noise eps; the posterior of z is N(M^-1 W' (x - m), noise^2 M^-1), M = W'W +
    noise^2, which is diagonal when the columns of W are orthogonal.
    """
    generator = torch.Generator().manual_seed(d)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator))[0][:, :q]
    w = basis * (0.5 + torch.rand(q, generator=generator))
    mean = torch.randn(d, generator=generator)
    network = MLPLadder((d,), LatentModel.outputs(None), [q], depth=0)
    m = (w * w).sum(0) + noise**2
    (encode,), decode = network.encoders, network.head.network
    with torch.no_grad():
        for layer in (encode[-1], decode[-1]):
            layer.weight.zero_()
        encode[-1].weight[:q] = (w / m).T
        encode[-1].bias[:q] = -(w / m).T @ mean
        encode[-1].bias[q:] = (noise / m.sqrt()).log()
        decode[-1].weight[:d] = w
        decode[-1].bias[:d] = mean
        decode[-1].bias[d:] = math.log(noise)
    covariance = (w @ w.T + noise**2 * torch.eye(d)).double()
    return network, GaussianMixture([1.0], mean[None], (0.5 * (covariance + covariance.T))[None])


@pytest.mark.parametrize(("d", "q"), [(1, 1), (16, 5)])
def test_a_linear_vae_with_the_parameters_of_ppca_has_no_gap(d, q):
    network, mixture = principal_components(d, q, 0.3)
    model = make(network, shape=(d,), mixture=mixture, importance_samples=3)
    x, _ = mixture.sample(2000, torch.Generator().manual_seed(1))
    exact = -mixture.log_prob(x.double())
    items = batch(x)
    # For each path exactly, because the posterior is the true one.
    path = model.hierarchy.path(x, training_noise(len(x), 0, 0))
    assert torch.allclose(-model.hierarchy.log_weight(x, path).double(), exact, atol=1e-4 * d)
    # The expectation is exact, too: the bound is quadratic in the noise, so 2 q points are enough.
    paths = [
        model.hierarchy.path(x, lambda shape, e=e: e.expand(shape)) for e in cubature(q).float()
    ]
    bound = torch.stack([model.hierarchy.bound(x, path).total.double() for path in paths]).mean(0)
    gap = (bound - exact) / d
    assert gap.abs().max() < 1e-3 and gap.mean().abs() < 1e-5
    # Also as the model is evaluated, by sampling.
    with torch.no_grad():
        model._evaluate_batch(items, 2, model.extra_metrics(items))
    found = model.accounting.compute().figures
    assert abs(found["gap"]["mean"]) < 3 * found["gap"]["stderr"] + 1e-3
    assert found["nats_per_dim_iw"]["mean"] == pytest.approx(exact.mean().item() / d, abs=1e-4)
    assert found["nats_per_dim_kl_1"]["mean"] == pytest.approx(
        found["nats_per_dim_prior"]["mean"], rel=1e-6
    )
    samples = model.sample(20_000, None, torch.Generator().manual_seed(3))
    truth, _ = mixture.sample(20_000, torch.Generator().manual_seed(4))
    assert torch.allclose(samples.T.cov().view(d, d), truth.T.cov().view(d, d), atol=0.06)


def digits_like(n: int = 6, levels: int = 17) -> torch.Tensor:
    k = torch.randint(0, levels, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return 2 * k / (levels - 1) - 1


@pytest.mark.parametrize(("levels", "halvings"), [(1, 1), (3, 1), (6, 3), (2, 0)])
def test_conv_ladder_reports_kl_per_level(levels, halvings):
    torch.manual_seed(0)
    network = ConvLadder(
        (1, 8, 8), LatentModel.outputs(17), levels, channels=3, halvings=halvings, width=8
    )
    model = make(network, 17, shape=(1, 8, 8), importance_samples=4)
    x = digits_like()
    with torch.no_grad():
        model._evaluate_batch(batch(x), model.repeats, model.extra_metrics(batch(x)))
    found = model.accounting.compute().figures
    kls = [found[f"bpd_kl_{level + 1}"]["mean"] for level in range(levels)]
    assert sum(kls) == pytest.approx(
        found["bpd_prior"]["mean"] + found["bpd_diffusion"]["mean"], rel=1e-5
    )
    assert kls[-1] == pytest.approx(found["bpd_prior"]["mean"], rel=1e-5)
    assert (found["bpd_diffusion"]["mean"] == 0) == (levels == 1)
    # The network is untrained.
    assert found["bpd_reconstruction"]["mean"] == pytest.approx(math.log2(17), abs=0.2)
    model.loss(batch(x), 0, 0, 1).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    samples = model.sample(5, None, torch.Generator().manual_seed(1))
    assert samples.shape == (5, 1, 8, 8)
    assert torch.isin(samples, model.observation.centres).all()


def test_hierarchical_vae_loss_is_independent_of_world_size():
    torch.manual_seed(0)
    model = make(ConvLadder((1, 8, 8), 17, 2, channels=3, width=8), 17, shape=(1, 8, 8)).eval()
    whole = batch(digits_like())
    with torch.no_grad():
        path = model.hierarchy.path(whole.x, training_noise(len(whole.x), 0, 5))
        loss = model.loss(whole, 5, 0, 1)
        assert torch.allclose(loss, model.hierarchy.bound(whole.x, path).total)
        halves = [
            model.loss(batch(whole.x[3 * rank : 3 * rank + 3]), 5, rank, 2) for rank in range(2)
        ]
    assert torch.allclose(loss, torch.cat(halves), rtol=1e-5)


def test_conv_ladder_refuses_invalid_halvings_and_shape():
    refused(lambda: ConvLadder((2,), 2, 1), "needs images")
