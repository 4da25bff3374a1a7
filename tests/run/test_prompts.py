"""Whether samples match their captions, by hand, on pictures with known attributes."""

import pytest
import torch
from torch.nn.functional import one_hot

from triptych.data.captions import DigitsCaptioned
from triptych.data.shapes import ATTRIBUTES, COMBINATIONS, Shapes
from triptych.data.text import Words
from triptych.run.judges import CaptionComparison


@pytest.fixture(scope="module")
def data():
    found = Shapes(encoder=Words(), train_size=200, val_size=90, test_size=20, held_out=4)
    found.setup()
    return found


def logits(labels):
    return one_hot(labels, len(COMBINATIONS)).double()


def changed(label, name):
    """Return the class that differs in one attribute alone."""
    at = dict(zip(ATTRIBUTES, COMBINATIONS[label], strict=True))
    at[name] = (at[name] + 1) % len(ATTRIBUTES[name])
    return COMBINATIONS.index(tuple(at.values()))


def test_prompt_accuracy_of_true_items_is_one(data):
    prompts, items = CaptionComparison(data, None), torch.arange(90)
    found = prompts.match_fractions(None, logits(data.splits["val"].labels), items)
    assert found == {"prompt_accuracy": 1.0} | {f"{name}_accuracy": 1.0 for name in ATTRIBUTES}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_prompt_accuracy_counts_attributes_named_in_caption(data, name):
    prompts, items = CaptionComparison(data, None), torch.arange(90)
    labels = torch.tensor([changed(label, name) for label in data.splits["val"].labels.tolist()])
    found = prompts.match_fractions(None, logits(labels), items)
    words = [set(caption.split()) for caption in data.captions["val"]]
    silent = sum(not said & {"left", "right"} for said in words) / 90 if name == "side" else 0.0
    assert 0.2 < silent < 0.5 or name != "side"
    assert found["prompt_accuracy"] == pytest.approx(silent)
    assert found == {"prompt_accuracy": found["prompt_accuracy"]} | {
        f"{other}_accuracy": float(other != name) for other in ATTRIBUTES
    }


def test_prompt_accuracy_skips_captions_without_class(data):
    prompts, items, labels = (
        CaptionComparison(data, None),
        torch.arange(90),
        data.splits["val"].labels.clone(),
    )
    prompts.meaning[:60] = -1
    labels[60:75] = torch.tensor([changed(label, "shape") for label in labels[60:75].tolist()])
    assert prompts.match_fractions(None, logits(labels), items)["prompt_accuracy"] == 0.5
    assert prompts.match_fractions(None, logits(labels[:60]), items[:60]) == {}


class OneHot:
    """A contrastive model that reads an image as a caption's number; captions are orthogonal."""

    def texts(self, text):
        self.n = len(text.value)
        return torch.eye(self.n)

    def images(self, x):
        return one_hot(x, self.n).float()


def test_retrieval_accepts_captions_of_equal_meaning(data):
    prompts = CaptionComparison(data, OneHot())
    distinct = list(dict.fromkeys(data.captions["val"]))
    asked = distinct.index(next(c for c in distinct if not {"left", "right"} & set(c.split())))
    item = data.captions["val"].index(distinct[asked])
    said = data.meaning(distinct)
    for nearest in range(len(distinct)):
        embedding = prompts.embedder.images(torch.tensor([nearest]))
        found = prompts.match_fractions(embedding, logits(torch.tensor([0])), torch.tensor([item]))
        # The caption leaves the side open.
        assert found["retrieval"] == float(torch.equal(said[nearest, :3], said[asked, :3]))


def test_untrained_prompts_are_held_out_combinations(data):
    prompts = CaptionComparison(data, None)
    kept = {
        COMBINATIONS[k][:3]
        for k in data.splits["val"].labels[prompts.is_left_out_of_training].tolist()
    }
    assert kept <= set(data.held_out) and prompts.is_left_out_of_training.any()
    assert not data.is_left_out_of_training(data.splits["train"].labels).any()


def test_prompt_accuracy_of_digits_captions_is_class_accuracy():
    data = DigitsCaptioned(encoder=Words())
    data.setup()
    own = data.splits["val"].labels
    assert torch.equal(data.meaning(data.captions["val"]), own.unsqueeze(1))
    found = CaptionComparison(data, None).match_fractions(
        None, one_hot(own, 10).double(), torch.arange(150)
    )
    assert found == {"prompt_accuracy": 1.0}
    other = one_hot((own + 1) % 10, 10).double()
    wrong = CaptionComparison(data, None).match_fractions(None, other, torch.arange(150))
    assert wrong == {"prompt_accuracy": 0.0}
