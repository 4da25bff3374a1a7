"""EDM2's network (Karras et al. 2024): magnitudes, sizes and conditions of its layers."""

import math

import pytest
import torch

from triptych.diffusion.condition import Condition, Labels, Vectors
from triptych.networks.edm2 import (
    EDM2,
    EDM2Block,
    RandomWaves,
    UnitLayer,
    mp_cat,
    mp_silu,
    mp_sum,
    unit,
)


def magnitude(x: torch.Tensor, dim: int = 1) -> torch.Tensor:
    return x.square().mean(dim).sqrt()


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def near(value: torch.Tensor, expected: float, rel: float = 0.02) -> None:
    assert value.mean().item() == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("kernel", [None, 1, 3])
@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_unit_layer_preserves_magnitude_for_any_weight_scale(kernel, scale):
    """Eq. 47: w / |w| times uncorrelated inputs of magnitude 1; a border of zeros lowers it."""
    torch.manual_seed(0)
    layer = UnitLayer(64, 256, kernel).eval()
    layer.weight.data *= scale
    if kernel is None:
        near(magnitude(layer(normal(200, 64))), 1)
    else:
        inside = layer(normal(8, 64, 20, 20))[:, :, 1:-1, 1:-1]
        near(magnitude(inside), 1)
        near(magnitude(layer(normal(8, 64, 20, 20), gain=0.5)[:, :, 1:-1, 1:-1]), 0.5)


def test_unit_layer_normalizes_stored_weights():
    """Eq. 66: stored weights have magnitude 1, to which optimizer steps are relative.

    The function stays the same.
    """
    torch.manual_seed(0)
    layer, x = UnitLayer(8, 16), normal(4, 8)
    layer.weight.data *= torch.linspace(0.5, 3, 16).unsqueeze(1)
    before = layer.eval()(x)
    assert layer.weight.std() > 1.5, "an evaluation writes nothing"
    layer.normalize()
    first = layer(x)
    layer.normalize()
    second = layer(x)
    torch.testing.assert_close(magnitude(layer.weight), torch.ones(16))
    torch.testing.assert_close(first, before, rtol=1e-3, atol=1e-4)
    (first.sum() + second.square().sum()).backward()  # both may be gone back through
    gradient = layer.weight.grad
    close = (layer.weight * gradient).sum(1)  # across the row, not along it (their sec. 2.3)
    assert close.abs().max() < 1e-3 * gradient.abs().max()


def test_mp_silu_mp_sum_mp_cat_and_waves_preserve_magnitude():
    """Eqs. 75, 81, 88 and 103."""
    a, b = normal(2, 1000, 16), torch.randn(2, 1000, 16, generator=torch.Generator().manual_seed(1))
    near(magnitude(mp_silu(a)), 1)
    near(magnitude(mp_sum(a, b, 0.3)), 1)
    torch.testing.assert_close(mp_sum(a, b, 0.3), (0.7 * a + 0.3 * b) / math.hypot(0.7, 0.3))
    joined = mp_cat(a, b[:, :100])
    near(magnitude(joined), 1)
    near((joined[:, :1000].square().sum(1) / joined[:, 1000:].square().sum(1)).sqrt(), 1, rel=0.05)
    torch.manual_seed(0)
    near(magnitude(RandomWaves(4000)(torch.linspace(-5, 5, 50))), 1)
    near(magnitude(unit(3 * a, 1)), 1, rel=1e-3)


@pytest.mark.parametrize("up", [False, True])
def test_edm2_block_preserves_magnitude_at_initialization(up):
    """Fig. 21: the parts have magnitude 1, and so do their weighted sums."""
    torch.manual_seed(0)
    sizes = {"conditioning": 16, "dropout": 0.0, "head_width": 8}
    block = EDM2Block(32, 64, up=up, **sizes)  # without attention, which averages
    near(magnitude(block(normal(4, 32, 16, 16), normal(4, 16))), 1, rel=0.05)


def test_edm2_attention_uses_normalized_queries_keys_and_values():
    torch.manual_seed(0)
    sizes = {"conditioning": 4, "dropout": 0.0, "head_width": 4}
    block = EDM2Block(8, 8, attends=True, up=True, **sizes).eval()
    h = normal(2, 8, 3, 5)
    parts = block.qkv(h).reshape(2, 2, 4, 3, 15)  # head, channel, which, position
    q, k, v = (p / (1e-4 + p.square().mean(2, keepdim=True).sqrt()) for p in parts.unbind(3))
    weights = torch.einsum("bhci,bhcj->bhij", q, k / 2).softmax(3)
    mixed = torch.einsum("bhij,bhcj->bhci", weights, v).reshape(2, 8, 3, 5)
    torch.testing.assert_close(block.attend(h), block.out(mixed))


def small(**more) -> EDM2:
    torch.manual_seed(0)
    network = EDM2((3, 8, 8), widths=(16, 32), blocks=1, attention_at=(4,), head_width=16, **more)
    network.gain.data.fill_(1.0)  # it begins as zero
    for block in network.modules():
        if isinstance(block, EDM2Block):
            block.gain.data.fill_(0.5)
    return network.eval()


def test_edm2_class_embedding_is_zero_without_label():
    network = small(conditions={"label": Labels(3)})
    z, gamma = normal(4, 3, 8, 8), torch.zeros(4)
    made = [network(z, gamma, Condition(label=torch.full((4,), k))) for k in range(3)] + [
        network(z, gamma)
    ]
    assert all((a - b).abs().max() > 1e-2 for i, a in enumerate(made) for b in made[:i])
    plain = small()
    plain.load_state_dict(
        {k: v for k, v in network.state_dict().items() if not k.startswith("classes")}
    )
    plain.level.register_forward_hook(lambda layer, given, embedding: embedding / math.sqrt(2))
    torch.testing.assert_close(
        made[3], plain(z, gamma), rtol=1e-3, atol=1e-3
    )  # 1/2 of it over hypot(1/2, 1/2)


def test_edm2_output_has_shape_of_outputs_and_starts_at_zero():
    network = small(outputs=2)
    assert network(normal(2, 3, 8, 8), torch.zeros(2)).shape == (2, 2, 3, 8, 8)
    assert not EDM2((3, 8, 8), widths=(16,), attention_at=(), head_width=16)(
        normal(2, 3, 8, 8), torch.zeros(2)
    ).any(), "its output begins as zero"


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (
            {"widths": (16, 32, 32, 32, 32)},
            r"widths=\[16, 32, 32, 32, 32\]: 8x8 images cannot be halved 4 times",
        ),
        ({"head_width": 24}, "head_width=24: must divide the number of channels, 16"),
        (
            {"conditions": {"vector": Vectors((4,))}},
            "denoiser=unet_edm2: supports only labels and images .* not vector",
        ),
    ],
)
def test_edm2_refuses_invalid_widths_and_conditions(sizes, words):
    with pytest.raises(ValueError, match=words):
        EDM2((3, 8, 8), **{"widths": (16, 32), "head_width": 16, **sizes})
