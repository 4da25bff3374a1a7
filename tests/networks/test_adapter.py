"""Models called like diffusers', under the networks' contract: a stand-in, and real ones."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.diffusion.oracles import refused
from triptych.diffusion.condition import Condition, Labels, Part, Vectors
from triptych.diffusion.schedule import Linear
from triptych.networks.adapter import Adapter

SHAPE = (1, 8, 8)
THEIRS = ["diffusers.models.unets.unet_2d.UNet2DModel"] * bool(find_spec("diffusers"))
OURS = "width blocks attention dropout fourier conditioning".split()  # keys of denoiser=resnet
SIZES = (
    "[8,16] norm_num_groups=4 layers_per_block=1 in_channels=1 out_channels=1 num_class_embeds=11"
)


class Heard(nn.Module):
    """A model that records its calls, and returns its input as an object or a tensor."""

    def __init__(self, channels=1, wrapped=True):
        super().__init__()
        self.channels, self.wrapped = channels, wrapped

    def forward(self, sample, timestep, class_labels=None):
        self.t, self.labels = timestep, class_labels
        found = sample.repeat(1, self.channels, 1, 1) * torch.arange(1, self.channels + 1).view(
            1, -1, 1, 1
        )
        return SimpleNamespace(sample=found) if self.wrapped else found


@pytest.mark.parametrize("wrapped", [True, False])
def test_adapter_reshapes_output_per_dimension(wrapped):
    z, gamma = torch.randn(3, *SHAPE), torch.zeros(3)
    assert Adapter(Heard(wrapped=wrapped), SHAPE)(z, gamma).equal(z)
    raw = Adapter(Heard(5, wrapped), SHAPE, outputs=5)(z, gamma)
    assert raw.shape == (3, 5, *SHAPE) and raw[:, 3].equal(4 * z)


def test_adapter_maps_gamma_to_timesteps_0_to_1000():
    """The steps are 0 .. 1000, increasing with the noise."""
    model = Heard()
    for ends in ((-13.3, 10.0), (-8.0, 6.0), (-20.0, 20.0)):
        gamma = Linear(*ends).gamma(torch.linspace(0, 1, 9))
        Adapter(model, SHAPE)(torch.zeros(9, *SHAPE), gamma)
        assert model.t.min() >= 0 and model.t.max() <= 1000 and (model.t.diff() > 0).all()
    assert (model.t[0], model.t[-1]) == (0, 1000) and model.labels is None


def test_adapter_passes_labels_and_null_class():
    """The class after the last one means none, for all items or for some."""
    model = Heard()
    network = Adapter(model, SHAPE, conditions={"label": Labels(3)})
    z, gamma, label = torch.zeros(3, *SHAPE), torch.zeros(3), torch.tensor([0, 1, 2])
    network(z, gamma, Condition(label=label))
    assert model.labels.tolist() == [0, 1, 2]
    network(z, gamma, Condition(label=Part(label, torch.tensor([True, False, True]))))
    assert model.labels.tolist() == [0, 3, 2]
    network(z, gamma)
    assert model.labels.tolist() == [3, 3, 3]


def test_another_condition_is_refused():
    text = {"text": Vectors(4)}
    refused(lambda: Adapter(Heard(), SHAPE, conditions=text), "only labels", "'text'")


@pytest.mark.slow
@pytest.mark.parametrize("name", THEIRS)
def test_diffusers_model_trains_only_if_diffusers_is_trusted(name, prepared, monkeypatch):
    from triptych.config import trust
    from triptych.errors import UserError
    from triptych.run.execute import execute

    sizes = f"block_out_channels={SIZES}".split()
    sizes += ["down_block_types=[DownBlock2D,DownBlock2D]", "up_block_types=[UpBlock2D,UpBlock2D]"]
    network = [f"+denoiser.network.model.{one}" for one in (f"_target_={name}", *sizes)]
    adapter = "denoiser.network._target_=triptych.networks.adapter.Adapter"
    gone = [f"~denoiser.network.{key}" for key in OURS]
    arguments = [adapter, *gone, *network, "model.conditional=true", "trainer.max_steps=2"]
    with pytest.raises(UserError, match="class is not allowed in a configuration"):
        prepared(*arguments, path="refused")
    monkeypatch.setenv("TRIPTYCH_TRUST", "diffusers.models.unets")
    assert execute(prepared(*arguments, path="made"))["status"] == "finished"
    with pytest.raises(UserError, match="class is not allowed in a configuration"):
        trust.check_name("diffusers.models.autoencoders.vae.Encoder")


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("name", ["UNet2DModel"] * bool(find_spec("diffusers")))
def test_adapter_matches_diffusers_unet(name, classes):
    """Each item is predicted with its own step and label, as by the model at the step of gamma."""
    import diffusers

    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    labels = {"num_class_embeds": classes + 1} if classes else {}
    made = getattr(diffusers, name)(
        in_channels=1, out_channels=1, **sizes, **blocks, **labels
    ).eval()
    network = Adapter(made, SHAPE, conditions={"label": Labels(classes)} if classes else {})
    z, gamma, label = torch.randn(2, *SHAPE), torch.tensor([-8.0, 6.0]), torch.tensor([0, 1])
    with torch.no_grad():
        raw = network(z, gamma, Condition(label=label) if classes else None)
        theirs = {"class_labels": label} if classes else {}
        torch.testing.assert_close(raw, made(z, torch.tensor([300.0, 650.0]), **theirs).sample)
        assert not torch.allclose(
            raw[:1], network(z[:1], gamma[1:], Condition(label=label[:1])), atol=1e-4
        )
