"""The networks' contract: shapes, zero output at first, labels, images of other sizes."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.diffusion.oracles import normal, refused
from triptych.config.build import build
from triptych.config.compose import compose_command, unresolved_config
from triptych.diffusion.condition import MEMBER, Condition, Labels, Tokens
from triptych.networks.base import ImageAttention, LevelWaves
from triptych.networks.conv_ladder import Head
from triptych.networks.dit import DiT, sine_positions
from triptych.networks.jit import JiT, SwiGLU, rotary_angles, rotate_pairs
from triptych.networks.mlp import MLP
from triptych.networks.prior import Prior
from triptych.networks.resnet import ResNet
from triptych.networks.unet import UNet, UNetBlock

CASES = [
    (MLP, (2,), {}),
    (MLP, (1, 8, 8), {}),
    (ResNet, (1, 8, 8), {"spacing": 0.125, "attention": True}),
    (ResNet, (3, 5, 7), {"fourier": []}),
    (ResNet, (1, 8, 8), {"width": 8, "blocks": 1, "fourier": [], "members": 3}),
    (UNet, (1, 8, 8), {"widths": [8, 16], "fourier": [2, 1], "spacing": 0.125}),
    (UNet, (3, 12, 16), {"widths": [8, 16, 24]}),
    (
        UNet,
        (1, 8, 8),
        {"widths": [8, 16], "attention_at": [8], "modulation": "shift", "resample": "block"},
    ),
    (
        UNet,
        (1, 8, 8),
        {"widths": [8, 16], "attention_at": [8], "head_width": 4, "resample": "bare_block"},
    ),
    (
        UNet,
        (3, 8, 4),
        {
            "widths": [8, 8],
            "attention_at": [4],
            "attention_up": "last",
            "stem": 4,
            "conditioning": 12,
        },
    ),
    (DiT, (1, 8, 8), {"width": 16, "depth": 2, "heads": 2, "fourier": [2, 1], "spacing": 0.125}),
    (Prior, (2,), {"width": 8, "depth": 1, "heads": 2}),
    (DiT, (3, 6, 9), {"patch": 3, "width": 8, "depth": 1, "heads": 1, "bottleneck": 5}),
    (JiT, (1, 8, 8), {"width": 16, "depth": 2, "heads": 2, "context": 3, "context_from": 1}),
    (
        JiT,
        (3, 6, 9),
        {"patch": 3, "width": 8, "depth": 1, "heads": 1, "bottleneck": 5, "context": 0},
    ),
]


def awake(network):
    """Give the last layer, which starts at zero, random weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


@pytest.mark.parametrize(("kind", "shape", "extra"), CASES)
@pytest.mark.parametrize("outputs", [1, 5])
def test_network_output_has_shape_and_starts_at_zero(kind, shape, extra, outputs):
    network = kind(shape, outputs=outputs, conditions={"label": Labels(3)}, **extra)
    z, gamma = torch.randn(4, *shape), torch.linspace(-8, 6, 4)
    raw = network(z, gamma, Condition(label=torch.tensor([0, 1, 2, 2])))
    assert raw.shape == ((4, *shape) if outputs == 1 else (4, outputs, *shape))
    assert not raw.any()


@pytest.mark.parametrize(("kind", "shape", "extra"), CASES)
def test_network_output_depends_on_own_item_gamma_and_label(kind, shape, extra):
    network = awake(kind(shape, conditions={"label": Labels(3)}, **extra))
    z, gamma, label = (
        torch.randn(3, *shape),
        torch.tensor([-3.0, 0.0, 3.0]),
        torch.tensor([0, 1, 2]),
    )
    whole = network(z, gamma, Condition(label=label))
    for own in (slice(i, i + 1) for i in range(3)):
        alone = network(z[own], gamma[own], Condition(label=label[own]))
        torch.testing.assert_close(whole[own], alone, rtol=1e-4, atol=1e-5)
    louder = network(z, gamma + 1, Condition(label=label))
    assert not torch.allclose(whole[:1], louder[:1], atol=1e-4), "gamma is heard"
    other = network(z, gamma, Condition(label=(label + 1) % 3))
    assert not torch.allclose(whole[:1], other[:1], atol=1e-4), "labels are heard"


SMALL, TWO = (1, 8, 8), {"widths": [8, 8], "blocks": 1}
TEXT = {"text": Tokens(3, 5)}
REFUSED = [
    *((kind, (2,), {}, ["use denoiser=mlp"]) for kind in (ResNet, UNet, DiT, JiT)),
    (UNet, (1, 10, 10), {"widths": [8, 8, 8]}, ["cannot be halved"]),
    (
        UNet,
        SMALL,
        {"widths": [8, 16], "heads": 7},
        ["denoiser.network.heads=7: must divide the number of channels, 16"],
    ),
    (
        UNet,
        SMALL,
        TWO | {"attention_at": [8, 7]},
        ["attention_at=[8, 7]: no", "height 7; use heights of 8, 4"],
    ),
    (UNet, SMALL, TWO | {"head_width": 3}, ["head_width=3", "channels, 8"]),
    (UNet, SMALL, TWO | {"text_at": [4]}, ["text_at=[4]", "no text", "model.conditional"]),
    (UNet, SMALL, TWO | {"text_at": [5], "conditions": TEXT}, ["text_at=[5]", "height 5"]),
    (DiT, SMALL, {"width": 18, "heads": 3}, ["denoiser.network.width=18: must be a multiple of 4"]),
    (
        JiT,
        SMALL,
        {"width": 24, "context": 0},
        ["width=24: must be a multiple of 4 times", "heads=4"],
    ),
    (JiT, SMALL, {"width": 16, "depth": 4}, ["context_from=4: must be from 0 to 3", "depth=4"]),
]


@pytest.mark.parametrize(("kind", "shape", "extra", "words"), REFUSED)
def test_network_refuses_incompatible_sizes(kind, shape, extra, words):
    refused(lambda: kind(shape, **extra), *words)


@pytest.mark.parametrize(("kind", "depth"), [(DiT, 4), (JiT, 5)])
def test_every_block_of_a_transformer_starts_as_the_identity(kind, depth):
    """adaLN-Zero (Peebles & Xie 2023): the last layer's input is the normalised patch embedding."""
    said, network = [], kind((1, 4, 4), width=8, depth=depth, heads=2)
    network.last.register_forward_pre_hook(lambda module, given: said.append(given[0]))
    z = torch.randn(2, 1, 4, 4)
    network(z, torch.zeros(2))
    tokens = network.embed(network.cut(z).flatten(2).transpose(1, 2)) + network.position
    torch.testing.assert_close(said[0], network.norm(tokens))


def test_dit_unpatchify_inverts_patchify():
    """With embedding, norm and last layer as identities, the output is the image itself."""
    network = DiT((3, 4, 6), patch=2, width=12, depth=1, heads=1)
    network.position.zero_()
    network.norm = torch.nn.Identity()
    with torch.no_grad():
        for layer in (network.embed[0], network.last):
            layer.weight.copy_(torch.eye(12))
    z = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(network(z, torch.zeros(2)), z)


def test_sinusoidal_positions_are_unique_and_translation_invariant():
    """Rows and columns have sines, so products depend on the distance along each."""
    place = sine_positions(3, 5, 16)
    assert place.shape == (15, 16) and len(place.unique(dim=0)) == 15
    near = (place @ place.T).unflatten(0, (3, 5)).unflatten(2, (3, 5))
    torch.testing.assert_close(near[0, 0, 1, 1], near[1, 3, 2, 4])
    torch.testing.assert_close(near[0, 1, 0, 3], near[2, 2, 2, 4])


def test_rotary_embedding_depends_on_relative_position():
    """Rotary positions (Su et al. 2021): q_m . k_n depends on n - m, here in rows and columns."""
    q, k = normal(2, 16)
    places = tuple(part.double() for part in rotary_angles(4, 5, 16))
    at = [rotate_pairs(v.expand(20, -1), places).unflatten(0, (4, 5)) for v in (q, k)]
    for down, right in ((0, 0), (1, 2), (3, 0)):
        products = (at[0][: 4 - down, : 5 - right] * at[1][down:, right:]).sum(-1)
        torch.testing.assert_close(
            products, products[:1, :1].expand_as(products), rtol=0, atol=1e-6
        )
    torch.testing.assert_close(at[0].norm(dim=-1), q.norm().expand(4, 5))
    row, pair = (
        torch.tensor(3.0),
        1,
    )  # and by which angle: p 10000^(-2 i / d) of a half head's d numbers
    angle = row * 10_000 ** (-2 * pair / 8)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]]).double()
    torch.testing.assert_close(at[0][3, 0, 2:4], turn @ q[2:4], rtol=1e-6, atol=1e-6)


def test_swiglu_is_the_published_gate():
    """Shazeer 2020, eq. 6: (swish(x W) * x V) W_2, with 2/3 of a perceptron's 4 width inside.

    JiT rounds it by int.
    """
    layer = SwiGLU(10, 0.0)
    x = torch.randn(4, 10)
    w, v = layer.both.weight.chunk(2)
    assert w.shape == (26, 10)
    gate = x @ w.T
    expected = (gate * torch.sigmoid(gate) * (x @ v.T)) @ layer.last.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_jit_context_tokens_enter_at_context_from_and_are_removed():
    """Class tokens enter before the named block, so earlier blocks do not read them."""
    sizes = {"width": 16, "depth": 3, "heads": 2, "context": 2, "context_from": 1}
    network = awake(JiT((1, 4, 4), conditions={"label": Labels(3)}, **sizes))
    seen = []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    z, gamma = torch.randn(2, 1, 4, 4), torch.zeros(2)
    label = Condition(label=torch.tensor([0, 2]))
    whole = network(z, gamma, label)
    assert [h.shape[1] for h in seen] == [4, 6, 6] and whole.shape == z.shape
    expected = network.context + network.conditioning.label.weight[[0, 2]].unsqueeze(1)
    torch.testing.assert_close(seen[1][:, :2], expected)
    network.context.data += torch.randn_like(network.context)
    assert not torch.allclose(whole, network(z, gamma, label), atol=1e-4)


def test_unet_skip_scale_matches_ddpm_plus_plus():
    """Song et al. 2021, app. H: (skip + inner) / sqrt 2, after a block and after its attention."""
    scale = 0.5**0.5
    how = {
        "conditioning": 4,
        "dropout": 0.0,
        "modulation": "shift",
        "heads": 2,
        "groups": 8,
        "resample": "conv",
    }
    attention = partial(ImageAttention, heads=2)
    plain, scaled = (
        UNetBlock(8, 8, partial(attention, skip_scale=s), skip_scale=s, **how) for s in (1.0, scale)
    )
    scaled.load_state_dict(awake(plain).state_dict())
    h, c = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    attention = plain.attention
    plain.attention = torch.nn.Identity()
    inner = scale * plain(h, c)
    torch.testing.assert_close(scaled(h, c), scale * attention(inner))


def published(name: str) -> dict:
    """Return the keys of a published network."""
    return unresolved_config(compose_command("train", [f"denoiser={name}"]))["denoiser"]["network"]


@pytest.mark.parametrize("name", ["unet_ddpm", "unet_iddpm", "unet_edm", "unet_vdm"])
def test_a_published_unet_normalises_in_32_groups(name):
    """32 groups are the default of tf.contrib and flax, and of improved-diffusion and EDM."""
    with torch.device("meta"):
        network = build(published(name), "denoiser.network", shape=(3, 32, 32), spacing=2 / 255)
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) > 20 and {norm.num_groups for norm in norms} == {32}


def test_unet_vdm_output_starts_as_z():
    """model_vdm.py has eps_pred += z: an untrained network predicts z itself as the noise."""
    small = published("unet_vdm") | {"blocks": 1, "widths": [32]}
    network = build(small, "denoiser.network", shape=(3, 8, 8), spacing=2 / 255)
    z = torch.randn(2, 3, 8, 8)
    assert torch.equal(network(z, torch.zeros(2)), z)


@pytest.mark.parametrize("channels", [8, 9])
def test_ladder_head_output_starts_near_zero(channels):
    """Outputs are 16 levels per pixel, or mean and deviation of 8 channels.

    These two begin as .95 z and -1.
    """
    torch.manual_seed(0)
    head = Head(channels, (1, 4, 4), 16, width=8, blocks=1, scale=1.0)
    assert head(torch.randn(5, channels, 4, 4)).abs().max() < 0.3


def test_level_waves_periods_match_level_spacing():
    """A wave with a period of two spacings alternates between levels; of one, it is constant."""
    levels = torch.linspace(-1, 1, 17).view(1, 1, 17)
    waves = LevelWaves([2, 1], 0.125)(levels)[0]
    torch.testing.assert_close(waves[2, :-1], -waves[2, 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(waves[4], torch.ones(17), atol=1e-4, rtol=0)
    refused(lambda: LevelWaves([2], None), "no discrete levels")


@pytest.mark.parametrize(("kind", "extra"), [(DiT, {}), (JiT, {"context": 0})])
def test_transformer_class_embedding_starts_with_std_0_02(kind, extra):
    """Peebles & Xie's code: nn.init.normal_(y_embedder.embedding_table.weight, std=0.02)."""
    torch.manual_seed(0)
    network = kind(
        (3, 8, 8), conditions={"label": Labels(100)}, patch=4, width=64, depth=1, heads=2, **extra
    )
    assert network.conditioning.get_submodule("label").weight.std().item() == pytest.approx(
        0.02, rel=0.05
    )


def test_ensemble_members_train_on_own_items_and_average_in_eval():
    """Without shares all members answer; members without items here have gradients, too."""
    network = awake(ResNet((1, 4, 4), width=8, fourier=[], members=3)).train()
    z, gamma = torch.randn(5, 1, 4, 4), torch.randn(5)
    answers = torch.stack(
        [network.forward_member(z, gamma), *(other(z, gamma) for other in network.others)]
    )
    torch.testing.assert_close(network(z, gamma), answers.mean(0))
    dealt = torch.tensor([2, 0, 2, 2, 0])
    raw = network(z, gamma, Condition(**{MEMBER: dealt}))
    torch.testing.assert_close(raw, answers[dealt, torch.arange(5)])
    raw.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not any(parameter.grad.any() for parameter in network.others[0].parameters())
