"""Positions that attend to tokens, by the formula, and never to masked or absent ones."""

import math
from itertools import product

import torch

from triptych.diffusion.condition import Condition, Labels, Part, Tokens
from triptych.networks.text import CrossAttention, Text


def tokens(n=2):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(n, 3, 5, generator=generator)
    return Condition(text=Part(value, mask=torch.tensor([[True, True, False]] * n)))


def test_cross_attention_matches_hand_computed_softmax():
    torch.manual_seed(0)
    layer, heads, d = CrossAttention(8, heads=2, width=6, groups=4), 2, 4
    torch.nn.init.normal_(layer.out.weight)
    h, keys = torch.randn(2, 8, 3, 3), torch.randn(2, 4, 6)
    there = torch.tensor([[True, True, False, True], [True, False, False, False]])
    q = layer.q(layer.norm(h))
    k, v = layer.kv(keys).chunk(2, 2)
    mixed = torch.zeros_like(h)
    for item in range(2):
        for head, row, column in product(range(heads), range(3), range(3)):
            part = slice(head * d, (head + 1) * d)
            score = k[item, :, part] @ q[item, part, row, column] / math.sqrt(d)
            share = score[there[item]].softmax(0)
            mixed[item, part, row, column] = share @ v[item, :, part][there[item]]
    torch.testing.assert_close(layer(h, (keys, there)), h + layer.out(mixed), rtol=1e-4, atol=1e-5)


def test_text_prepends_null_token_and_keeps_token_order():
    text, told = Text({"text": Tokens(3, 5), "label": Labels(2)}, 6), tokens()
    found, there = text(told, 2)
    assert found.shape == (2, 16, 6) and there.tolist() == [[True] * 3 + [False] * 13] * 2
    turned = told.map(lambda t: t.flip(1) if t.dtype != torch.bool else t)
    assert not torch.allclose(text(turned, 2)[0].sum(1), found.sum(1))  # places are told, too
    gone = told.drop({"text": torch.tensor([True, False])})
    assert text(gone, 2)[1].tolist() == [[True] + [False] * 15, [True] * 3 + [False] * 13]
    nothing, alone = text(None, 2)
    assert nothing.shape == (2, 16, 6) and alone.tolist() == [[True] + [False] * 15] * 2


def test_cross_attention_ignores_padding_tokens():
    torch.manual_seed(0)
    layer = CrossAttention(8, heads=2, width=6, groups=4)
    torch.nn.init.normal_(layer.out.weight)
    h, (found, there) = torch.randn(2, 8, 3, 3), Text({"text": Tokens(3, 5)}, 6)(tokens(), 2)
    torch.testing.assert_close(layer(h, (found, there)), layer(h, (found[:, :3], there[:, :3])))
