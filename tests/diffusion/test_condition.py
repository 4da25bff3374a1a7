"""Conditions as values: items, parts, absent parts, dropout, and refusals."""

import pytest
import torch

from triptych.diffusion.condition import Condition, Part, drop_parts

from .oracles import refused

LABEL = torch.tensor([3, 1, 2, 0])
TEXT = Part(
    torch.arange(24.0).view(4, 3, 2),
    torch.tensor([True, True, False, True]),
    torch.tensor([[True, True, False]] * 4),
)


def both():
    return Condition(label=LABEL, text=TEXT)


def test_condition_indexing_selects_items_of_every_part():
    found = both()[torch.tensor([2, 0])]
    assert len(both()) == 4 and len(found) == 2
    assert found.label.tolist() == [2, 3]
    assert found.parts["text"].value.equal(TEXT.value[[2, 0]])
    assert found.parts["text"].present.tolist() == [False, True] and found.parts[
        "text"
    ].mask.shape == (2, 3)
    assert both()[torch.tensor([True, False, False, True])].label.tolist() == [3, 0]


def test_condition_split_keeps_item_order():
    pieces = both().split(3)
    assert [len(piece) for piece in pieces] == [3, 1]
    for name, part in both().parts.items():
        for key, whole in vars(part).items():
            own = [getattr(piece.parts[name], key) for piece in pieces]
            assert own == [None, None] if whole is None else torch.cat(own).equal(whole)


def test_condition_without_together_only_and_to():
    assert set(both().without("label").parts) == {"text"}
    assert both().without("label", "text") is None and Condition.of(label=None) is None
    together = both().without("label").merge(Condition(label=LABEL.flip(0)))
    assert together.label.equal(LABEL.flip(0)) and both().merge(None).label.equal(LABEL)
    assert both().merge(Condition(label=LABEL.flip(0))).label.equal(LABEL.flip(0)), (
        "the other's part wins"
    )
    assert set(both().only("text", "image").parts) == {"text"} and both().only("image") is None
    moved = both().to("cpu", non_blocking=True)
    assert moved.label.equal(LABEL) and moved.part("image") is None


def test_condition_drop_combines_with_absent_parts():
    dropped = both().drop({"text": torch.tensor([True, False, False, False])})
    assert dropped.parts["text"].present.tolist() == [False, True, False, True]
    assert dropped.parts["label"].present is None and both().parts["text"].present.equal(
        TEXT.present
    )


def test_dropout_is_joint_for_one_share_and_independent_for_a_dict():
    n = 20_000
    condition = Condition(label=torch.arange(n) % 10, vector=torch.zeros(n, 2))
    gone = {k: ~p.present for k, p in drop_parts(condition, 0.2, seed=1, step=3).parts.items()}
    assert gone["label"].equal(gone["vector"])
    assert abs(gone["label"].double().mean().item() - 0.2) < 3 * (0.16 / n) ** 0.5
    apart = {
        k: ~p.present
        for k, p in drop_parts(condition, {"label": 0.2, "vector": 0.5}, 1, 3).parts.items()
    }
    for name, share in (("label", 0.2), ("vector", 0.5)):
        assert (
            abs(apart[name].double().mean().item() - share) < 3 * (share * (1 - share) / n) ** 0.5
        )
    joint = (apart["label"] & apart["vector"]).double().mean().item()
    assert abs(joint - 0.1) < 3 * (0.09 / n) ** 0.5, "independently"
    assert drop_parts(condition, {"vector": 0.5}, 1, 3).parts["label"].present is None
    halves = [
        drop_parts(half, {"label": 0.2, "vector": 0.5}, 1, 3, r, 2)
        for r, half in enumerate(condition.split(n // 2))
    ]
    for name, gone in apart.items():
        assert torch.cat([half.parts[name].present for half in halves]).equal(~gone)


def test_condition_refuses_empty_or_unequal_parts():
    refused(lambda: Condition(), "at least one part")
    refused(
        lambda: Condition(label=LABEL, vector=torch.zeros(3, 2)),
        "[label, vector] with [3, 4] items",
    )
    refused(lambda: Condition(text=Part(TEXT.value, TEXT.present[:2])), "[text] with [2, 4] items")
    refused(lambda: Condition(vector=torch.zeros(3, 2)).label, "no part label", "vector")
    with pytest.raises(IndexError):
        both()[torch.tensor([4])]
