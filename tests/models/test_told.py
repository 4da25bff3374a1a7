"""Augmentation as a condition: present in training, never dropped, not leaking into samples."""

import pytest
import torch

from tests.refusal import refused, refused_if
from triptych.data.augment import Flip, augment_batch
from triptych.data.batch import Batch
from triptych.diffusion.bound import Bound
from triptych.diffusion.condition import AUGMENTATION, Condition, Labels, Part, Vectors
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.denoiser import Denoiser, Output
from triptych.diffusion.loss import Squared
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear
from triptych.models.diffusion import Diffusion
from triptych.networks.mlp import MLP
from triptych.run.build import build_experiment
from triptych.run.execute import execute
from triptych.run.reopen import reopen

from .options import OPTIONS

SHAPE = (1, 1, 2)
POINT = torch.tensor([1.0, -1.0]).view(1, *SHAPE)


def model(conditions, **more) -> Diffusion:
    torch.manual_seed(0)
    output, schedule = Output("x0"), Linear(-4.0, 6.0)
    network = MLP(SHAPE, conditions=conditions, width=32, blocks=2)
    parts = (
        Denoiser(network, output, VariancePreserving()),
        schedule,
        Objective(output, Squared("x0")),
    )
    bound = Bound(schedule, GaussianDensity())
    return Diffusion(*parts, bound, shape=SHAPE, discrete=False, **OPTIONS | {"seed": 1} | more)


@pytest.mark.parametrize("told", [True, False])
def test_told_augmentation_does_not_leak_into_samples(told):
    """Half of an image's copies are mirrored: from pure noise the estimate is the image itself.

    If the network is not conditioned on the mirroring, it is the mean of both.
    """
    trained = model({AUGMENTATION: Vectors(1)} if told else {})
    optimizer = torch.optim.AdamW(trained.parameters(), lr=5e-3)
    for step in range(200):
        batch = Batch(POINT.repeat(64, 1, 1, 1), None, torch.arange(64))
        loss = trained.loss(
            augment_batch(batch, [Flip(0.5, told=told)], seed=3, step=step), step, 0, 1
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z = torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(0))
    guess = trained.denoiser(z, torch.tensor(6.0)).x0.mean(0, keepdim=True)
    torch.testing.assert_close(guess, POINT if told else 0 * POINT, rtol=0, atol=0.15)
    assert not trained.denoiser.conditional  # augmentation is no condition of samples


def test_augmentation_condition_is_never_dropped(monkeypatch):
    seen = []
    for conditional in (True, False):
        kinds = {AUGMENTATION: Vectors(1)} | ({"label": Labels(3)} if conditional else {})
        trained = model(kinds, conditional=conditional, label_dropout=1.0)
        forward = trained.denoiser.network.forward
        monkeypatch.setattr(
            trained.denoiser.network,
            "forward",
            lambda z, g, c, f=forward: seen.append(c) or f(z, g, c),
        )
        done = Part(torch.ones(4, 1), torch.tensor([True, True, False, True]))
        told = Condition(**{"label": torch.zeros(4, dtype=torch.long), AUGMENTATION: done})
        trained.loss(Batch(POINT.repeat(4, 1, 1, 1), told, torch.arange(4)), 0, 0, 1)
        part = seen[-1].parts[AUGMENTATION]
        assert part.value.equal(done.value) and part.present.equal(done.present)
        assert ("label" in seen[-1].parts) == conditional
        if conditional:
            assert not seen[-1].parts["label"].present.any()  # all left out, as asked


def test_non_leaking_augmentation_run_trains_and_reopens(prepared):
    run = prepared("augmentation=non_leaking", "augmentation.crop.padding=1")
    assert execute(run)["status"] == "finished"
    opened = reopen(str(run / "checkpoints" / "last.ckpt"))
    assert opened.model.denoiser.network.conditions == {AUGMENTATION: Vectors(3)}
    assert not opened.model.conditional and set(opened.data.conditions) == {"label"}


def test_vae_refuses_augmentation_with_told(prepared):
    run = prepared("model=vae", "augmentation=flip", "augmentation.flip.told=true")
    refused(lambda: execute(run), "augmentation: VAE ", " set told=false")


@pytest.mark.parametrize(
    ("augmentation", "parts", "said"),
    [
        ("flip", "[low]", "'low'"),
        ("flip_crop", "[text,low]", "'low'"),
        ("non_leaking", "true", "'low'"),
        ("flip", "[text]", ""),
        ("flip", "[label]", ""),
        ("conditioning_noise", "[low]", ""),
    ],
)
def test_augmentation_is_refused_if_condition_holds_image_of_item(
    prepared, augmentation, parts, said
):
    small = "data=shapes data.train_size=40 data.val_size=8 data.test_size=12 denoiser=unet".split()
    config = prepared(*small, f"augmentation={augmentation}", f"model.conditional={parts}").config()
    refused_if(
        lambda: build_experiment(config, False),
        said and f"augmentation: changes the item, but not its {said}",
    )
