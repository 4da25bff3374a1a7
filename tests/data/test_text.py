"""Text encoders: a closed vocabulary and a transformers model, their errors and disk caches."""

import subprocess
import sys

import pytest
import torch

from triptych.data.text import Pretrained, Words, words

from .helpers import refused

CAPTIONS = ["three red squares", "a blue circle", "one circle, in red."]


def test_words_splits_text_into_lowercase_words():
    assert words("Three RED squares, 'ankle-boot' it's.") == [
        "three",
        "red",
        "squares",
        "ankle-boot",
        "it's",
    ]


@pytest.fixture
def one_hot():
    encoder = Words(length=4)
    encoder.learn(CAPTIONS)
    return encoder


def test_words_encoder_gives_one_hot_tokens_in_order(one_hot):
    tokens, mask = one_hot.encode(CAPTIONS)
    assert tokens.shape == (3, 4, one_hot.width)
    assert tokens.dtype == torch.float32 and mask.dtype == torch.bool
    assert tokens.sum(2).equal(mask.float()) and mask.sum(1).tolist() == [3, 3, 4]
    read = [one_hot.vocabulary[i] for i in tokens[0, :3].argmax(1)]
    assert read == ["three", "red", "squares"]


def test_a_linear_layer_of_one_hot_tokens_is_an_embedding(one_hot):
    layer = torch.nn.Linear(one_hot.width, 5, bias=False)
    tokens, mask = one_hot.encode(CAPTIONS)
    rows = torch.nn.functional.embedding(tokens.argmax(2), layer.weight.T)
    assert torch.allclose(layer(tokens)[mask], rows[mask])


def test_words_encoder_refuses_unknown_empty_or_long_prompt(one_hot):
    refused(lambda: one_hot.encode(["red", "red squars"]), "prompt='red squars'", "'squars'")
    refused(lambda: one_hot.encode(["red", " ,. "]), "prompt=' ,. '", "at least one")
    refused(lambda: one_hot.encode(["red " * 5]), "5 tokens", "at most 4", "data.encoder.length")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a transformers model with random weights, and a tokenizer of a few words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = tmp_path_factory.mktemp("bert")
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "red",
        "blue",
        "circle",
        "square",
        "##s",
    ]
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=12, **sizes)
    BertModel(config).save_pretrained(path)
    return path


def test_pretrained_encoder_returns_last_hidden_state(folder):
    from transformers import AutoModel, AutoTokenizer

    texts = ["red circles", "blue square", "red"]
    encoder = Pretrained(folder, length=7)
    tokens, mask = encoder.encode(texts)
    assert tokens.shape == (3, 7, 8) and mask.sum(1).tolist() == [5, 4, 3]
    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    for text, found, there in zip(texts, tokens, mask, strict=True):
        alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert torch.allclose(found[there], alone, atol=1e-5) and not found[~there].any()


def test_pretrained_encoder_leaves_device_contexts_as_they_are(folder):
    """A network is built on the meta device, for its cost, after a model was loaded."""
    code = (
        "import sys, torch; from triptych.data.text import Pretrained; "
        "Pretrained(sys.argv[1], length=7).encode(['red']); "
        "torch.set_default_device('meta'); print(torch.linspace(0, 1, 2).device)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert found.stdout == "meta\n"


def test_pretrained_encoder_refuses_too_long_or_empty_text(folder):
    refused(lambda: Pretrained(folder, length=4).encode(["red blue red"]), "5 tokens", "at most 4")
    refused(lambda: Pretrained(folder, length=7).encode([""]), "prompt=''", "at least one")


def test_pretrained_encoder_refuses_missing_or_broken_model(tmp_path):
    refused(lambda: Pretrained(tmp_path / "none"), "data.encoder.path", "config.json")


def test_text_embeddings_are_cached_by_model_and_text(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path))
    first = Pretrained(folder, length=7).table(["red", "blue"], "caption")
    again = Pretrained(folder, length=7)
    monkeypatch.setattr(again, "embed", lambda pieces: pytest.fail("it was encoded again"))
    found = again.table(["red", "blue"], "caption")
    assert all(a.equal(b) and a.dtype == b.dtype for a, b in zip(first, found, strict=True))
    assert len(list(tmp_path.iterdir())) == 1  # whole, nothing beside it
    Pretrained(folder, length=7).table(["red", "circle"], "caption")
    Pretrained(folder, length=8).table(["red", "blue"], "caption")
    assert len(list(tmp_path.iterdir())) == 3


def test_pretrained_encoder_name_depends_on_weights_and_vocabulary(folder, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder)
    model.embeddings.word_embeddings.weight.data += 1
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    first, again, other = (Pretrained(path, length=7).name for path in (folder, folder, tmp_path))
    assert first == again != other
    (tmp_path / "vocab.txt").write_text("blue")
    assert Pretrained(tmp_path, length=7).name != other, "another vocabulary"
