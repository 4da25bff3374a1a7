"""Every kind of condition in every network: it has an effect, and can be absent for some items."""

import pytest
import torch

from tests.diffusion.oracles import generator
from triptych.diffusion.condition import Condition, Images, Labels, Part, Tokens, Vectors
from triptych.networks.conditioning import Conditioning
from triptych.networks.dit import DiT
from triptych.networks.jit import JiT
from triptych.networks.mlp import MLP
from triptych.networks.prior import Prior
from triptych.networks.resnet import ResNet
from triptych.networks.unet import UNet

from .test_networks import awake

KINDS = {"label": Labels(3), "vector": Vectors(5), "text": Tokens(4, 6), "low": Images((2, 4, 4))}
NETWORKS = [
    (MLP, {}),
    (ResNet, {"fourier": [], "width": 8, "blocks": 1}),
    (UNet, {"widths": [8, 8], "blocks": 1}),
    (UNet, {"widths": [8, 8], "blocks": 1, "text_at": [4]}),
    (DiT, {"width": 8, "depth": 1}),
    (JiT, {"width": 16, "depth": 2, "heads": 2, "context": 3, "context_from": 1}),
    (Prior, {"width": 8, "depth": 1, "heads": 2}),
]


def condition():
    draws, mask = generator(), torch.tensor([[True, True, False, False]] * 3)
    vector, text, low = (
        torch.randn(3, *shape, generator=draws) for shape in ((5,), (4, 6), (2, 4, 4))
    )
    return Condition(
        label=torch.tensor([2, 0, 1]), vector=vector, text=Part(text, mask=mask), low=low
    )


@pytest.mark.parametrize(("kind", "extra"), NETWORKS)
def test_condition_parts_affect_their_own_item_only(kind, extra):
    network = awake(kind((1, 8, 8), conditions=KINDS, **extra))
    z, gamma, told = torch.randn(3, 1, 8, 8), torch.tensor([-3.0, 0.0, 3.0]), condition()
    with torch.no_grad():
        whole = network(z, gamma, told)
        for i in range(3):
            alone = network(z[i : i + 1], gamma[i : i + 1], told[slice(i, i + 1)])
            torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-4, atol=1e-5)
        for name in KINDS:
            first = torch.tensor([True, False, False])
            less = network(z, gamma, told.drop({name: first}))
            assert (less - whole)[0].abs().max() > 1e-4, f"{name} is heard"
            torch.testing.assert_close(less[1:], whole[1:], rtol=1e-4, atol=1e-5)
            without = network(z, gamma, told.without(name))
            torch.testing.assert_close(without[:1], less[:1], rtol=1e-4, atol=1e-5)
        nothing = told.drop(dict.fromkeys(KINDS, torch.ones(3, dtype=torch.bool)))
        assert torch.equal(network(z, gamma), network(z, gamma, nothing))


def test_masked_tokens_do_not_change_conditioning():
    network = awake(Conditioning(8, KINDS))
    gamma, told = torch.zeros(3), condition()
    text = told.parts["text"]
    padded = text.value.clone()
    padded[:, 2:] = 7
    with torch.no_grad():
        same = network(gamma, told.merge(Condition(text=Part(padded, None, text.mask))))
        torch.testing.assert_close(same, network(gamma, told))
        other = network(gamma, told.merge(Condition(text=Part(padded + 1, None, text.mask))))
        assert not torch.allclose(other, same)
        empty = network(
            gamma, told.merge(Condition(text=Part(padded, None, torch.zeros_like(text.mask))))
        )
    assert empty.isfinite().all()


def test_network_ignores_unknown_condition_parts():
    network = awake(MLP((2,), conditions={"vector": Vectors(5)}))
    z, gamma = torch.randn(3, 2), torch.zeros(3)
    assert torch.equal(
        network(z, gamma, condition()), network(z, gamma, condition().only("vector"))
    )
