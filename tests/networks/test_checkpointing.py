"""Gradient checkpointing changes the memory of a network, and none of its figures."""

import pytest
import torch

from tests.networks.test_networks import awake
from triptych.diffusion.betas import Betas
from triptych.diffusion.condition import Condition, Labels
from triptych.networks.dit import DiT
from triptych.networks.edm2 import EDM2
from triptych.networks.jit import JiT
from triptych.networks.resnet import ResNet
from triptych.networks.unet import UNet
from triptych.networks.unet2d import UNet2D
from triptych.study.plan import SavedTensors

SHAPE = (3, 8, 8)
DIFFUSERS = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}
CASES = [
    (UNet, {"widths": [8, 16], "attention_at": [4], "resample": "block"}),
    (UNet, {"widths": [8, 16], "attention_at": [8]}),
    (DiT, {"width": 16, "depth": 4, "heads": 2}),
    (JiT, {"width": 16, "depth": 4, "heads": 2, "context": 3, "context_from": 1}),
    (EDM2, {"widths": [16, 32], "blocks": 2, "attention_at": [4], "head_width": 16}),
    (ResNet, {"width": 8, "attention": True, "fourier": [], "members": 2}),
    (UNet2D, {**DIFFUSERS, "schedule": Betas()}),
]


def step(kind, sizes, checkpointing):
    """Return the loss, the gradients, the bytes kept and the state's keys of one training step."""
    torch.manual_seed(0)
    kinds = {} if kind is UNet2D else {"label": Labels(3)}
    network = kind(SHAPE, conditions=kinds, dropout=0.3, checkpointing=checkpointing, **sizes)
    awake(network).train()
    z, gamma = torch.randn(4, *SHAPE), torch.linspace(-8, 6, 4)
    condition = Condition(label=torch.tensor([0, 1, 2, 2])) if kinds else None
    saved = SavedTensors()  # checkpointing saves the inputs of blocks as other functions do theirs
    with saved:
        loss = network(z, gamma, condition).square().mean()
    kept = saved.bytes_excluding(network.parameters())
    torch.rand(7)  # other draws between the two passes
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    return loss, gradients, kept, [*network.state_dict()], torch.rand(3)


@pytest.mark.parametrize(("kind", "sizes"), CASES)
def test_checkpointing_keeps_loss_gradients_and_later_draws_to_the_last_digit(kind, sizes):
    if kind is UNet2D:
        pytest.importorskip("diffusers")
    loss, gradients, kept, keys, later = step(kind, sizes, False)
    again, same, fewer, names, draws = step(kind, sizes, True)
    assert torch.equal(loss, again) and keys == names and torch.equal(later, draws)
    for gradient, other in zip(gradients, same, strict=True):
        assert torch.equal(gradient, other)
    assert fewer < 0.5 * kept


def test_checkpointing_is_for_training_alone():
    """A likelihood and guidance go back through a network in evaluation once, without dropout."""
    network = awake(UNet(SHAPE, widths=[8, 16], checkpointing=True))
    calls = []
    network.middle[0].register_forward_pre_hook(lambda block, inputs: calls.append(block))
    z = torch.randn(2, *SHAPE, requires_grad=True)
    network(z, torch.zeros(2)).sum().backward()
    assert len(calls) == 1
    network.train()(z, torch.zeros(2)).sum().backward()
    assert len(calls) == 3
