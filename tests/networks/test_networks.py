"""The networks' contract: shapes, silence at the start, labels, images of other sizes."""

import pytest
import torch

from triptych.diffusion.condition import Condition, Labels, Part
from triptych.networks.embedding import LevelWaves
from triptych.networks.mlp import MLP
from triptych.networks.resnet import ResNet
from triptych.networks.unet import UNet

CASES = [
    (MLP, (2,), {}),
    (MLP, (1, 8, 8), {}),
    (ResNet, (1, 8, 8), {"spacing": 0.125, "attention": True}),
    (ResNet, (3, 5, 7), {"fourier": []}),
    (UNet, (1, 8, 8), {"widths": [8, 16], "fourier": [2, 1], "spacing": 0.125}),
    (UNet, (3, 12, 16), {"widths": [8, 16, 24]}),
]


def awake(network):
    """The last layer starts at zero; give it something to say."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


@pytest.mark.parametrize(("kind", "shape", "extra"), CASES)
@pytest.mark.parametrize("outputs", [1, 5])
def test_shapes_and_a_silent_start(kind, shape, extra, outputs):
    network = kind(shape, outputs=outputs, conditions={"label": Labels(3)}, **extra)
    z, gamma = torch.randn(4, *shape), torch.linspace(-8, 6, 4)
    raw = network(z, gamma, Condition(label=torch.tensor([0, 1, 2, 2])))
    assert raw.shape == ((4, *shape) if outputs == 1 else (4, outputs, *shape))
    assert not raw.any()


@pytest.mark.parametrize(("kind", "shape", "extra"), CASES)
def test_each_item_depends_on_its_own_inputs_alone(kind, shape, extra):
    network = awake(kind(shape, conditions={"label": Labels(3)}, **extra))
    z, gamma, label = (
        torch.randn(3, *shape),
        torch.tensor([-3.0, 0.0, 3.0]),
        Condition(label=torch.tensor([0, 1, 2])),
    )
    whole = network(z, gamma, label)
    for i in range(3):
        alone = network(z[i : i + 1], gamma[i : i + 1], label[slice(i, i + 1)])
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole[:1], network(z[:1], gamma[:1] + 1, label[slice(1)]), atol=1e-4), (
        "gamma is heard"
    )
    assert not torch.allclose(
        whole[:1], network(z[:1], gamma[:1], Condition(label=label.label[:1] + 1)), atol=1e-4
    ), "labels are heard"


@pytest.mark.parametrize(("kind", "shape", "extra"), CASES)
def test_no_label_is_a_label_that_is_absent(kind, shape, extra):
    network = awake(kind(shape, conditions={"label": Labels(3)}, **extra))
    z, gamma = torch.randn(2, *shape), torch.zeros(2)
    absent = Condition(label=Part(torch.tensor([0, 2]), torch.tensor([False, False])))
    assert torch.equal(network(z, gamma), network(z, gamma, absent))


@pytest.mark.parametrize("kind", [ResNet, UNet])
def test_images_only(kind):
    with pytest.raises(ValueError, match="mlp is accepted"):
        kind((2,))


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="do not halve"):
        UNet((1, 10, 10), widths=[8, 8, 8])


def test_waves_fit_the_levels():
    """A period of two spacings changes sign from level to level; a period of one is the same at all."""
    levels = torch.linspace(-1, 1, 17).view(1, 1, 17)
    waves = LevelWaves([2, 1], 0.125)(levels)[0]
    torch.testing.assert_close(waves[2, :-1], -waves[2, 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(waves[4], torch.ones(17), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="no levels"):
        LevelWaves([2], None)
