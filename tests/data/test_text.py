"""Text encoders: a closed vocabulary, and what it refuses."""

import pytest
import torch

from triptych.data.text import Words, words

from .helpers import refused

CAPTIONS = ["three red squares", "a blue circle", "one circle, in red."]


def test_words_of_a_text():
    assert words("Three RED squares, 'ankle-boot' it's.") == ["three", "red", "squares", "ankle-boot", "it's"]


@pytest.fixture
def one_hot():
    encoder = Words(length=4)
    encoder.learn(CAPTIONS)
    return encoder


def test_words_are_one_hot_and_in_order(one_hot):
    tokens, mask = one_hot.encode(CAPTIONS)
    assert (
        tokens.shape == (3, 4, one_hot.width) and tokens.dtype == torch.float32 and mask.dtype == torch.bool
    )
    assert tokens.sum(2).equal(mask.float()) and mask.sum(1).tolist() == [3, 3, 4]
    read = [one_hot.vocabulary[i] for i in tokens[0, :3].argmax(1)]
    assert read == ["three", "red", "squares"]


def test_a_linear_layer_of_one_hot_tokens_is_an_embedding(one_hot):
    layer = torch.nn.Linear(one_hot.width, 5, bias=False)
    tokens, mask = one_hot.encode(CAPTIONS)
    rows = torch.nn.functional.embedding(tokens.argmax(2), layer.weight.T)
    assert torch.allclose(layer(tokens)[mask], rows[mask])


def test_what_cannot_be_encoded_is_said_in_one_line(one_hot):
    refused(lambda: one_hot.encode(["red", "three red squars"]), "prompt='three red squars'", "squares")
    refused(lambda: one_hot.encode(["red", " ,. "]), "prompt=' ,. '", "one word or more")
    refused(lambda: one_hot.encode(["red " * 5]), "5 tokens", "at most 4", "data.encoder.length")
