"""Which parts of the data's conditions a network is told."""

import pytest
import torch

from triptych.data.shapes import Shapes
from triptych.data.text import Words
from triptych.diffusion.sampler import DDIM
from triptych.errors import UserError
from triptych.run.drawing import Drawing
from triptych.run.model import build_model

SHAPES = "data=shapes denoiser=unet denoiser.network.widths=[8,8] denoiser.network.blocks=1".split()


@pytest.fixture(scope="module")
def data():
    found = Shapes(encoder=Words(), train_size=20, val_size=6, test_size=8)
    found.setup()
    return found


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("true", {"label", "text", "low"}),
        ("[text]", {"text"}),
        ("[text,low]", {"text", "low"}),
        ("false", set()),
    ],
)
def test_the_network_is_told_these_and_no_more(prepared, data, said, told):
    model = build_model(prepared(*SHAPES, f"model.conditional={said}").config(), data)
    assert set(model.denoiser.network.conditions) == told
    condition = model.condition_of(data.splits["test"].batch(torch.arange(4)))
    assert set(condition.parts if condition else ()) == told


def test_samples_are_of_classes_in_turn_where_labels_are_all_that_is_told(prepared, data):
    model = build_model(prepared(*SHAPES, "model.conditional=[label]").config(), data)
    drawing = Drawing(model, data, DDIM(3))
    assert drawing.condition(80).label.tolist() == [*range(72), *range(8)]
    model.conditional = ["text"]
    tokens, held_out = (c.parts["text"].value for c in (drawing.condition(8), data.splits["val"].condition))
    assert tokens.equal(torch.cat([held_out[:6], held_out[:2]])), "those of held-out items, in turn"


def test_a_part_that_the_data_do_not_have(prepared, data):
    with pytest.raises(UserError, match=r"model\.conditional: 'txt'.*choose from label, text, low"):
        build_model(prepared(*SHAPES, "model.conditional=[txt]").config(), data)
