"""Embeddings of a contrastive run, as conditions of captioned data and as data."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

from tests.models.options import OPTIONS
from triptych.data.build import check_splits_match_declaration, fingerprint
from triptych.data.captions import DigitsCaptioned, Embedder, project_to_sphere, slerp
from triptych.data.digits import Digits
from triptych.data.image_embeddings import ImageEmbeddings
from triptych.data.shapes import Shapes
from triptych.data.text import Words
from triptych.diffusion.condition import Part, Vectors
from triptych.models.contrastive import Contrastive
from triptych.networks.contrastive import ContrastiveNetwork
from triptych.run import build

from .helpers import refused

UNREADABLE = "its encoder.pt cannot be read"
SIZES = {"embedding": 6, "width": 4, "stages": 2, "text_width": 8, "depth": 1, "heads": 2}
D = SIZES["embedding"]


class Bytes:
    """An object whose pickle is a call, with which torch.load is tested."""

    def __reduce__(self):
        return bytearray, (2**40,)


def unset(**more):
    return Shapes(encoder=Words(), train_size=120, val_size=12, test_size=20, held_out=2, **more)


def shapes(**more):
    data = unset(**more)
    data.setup()
    return data


@pytest.fixture(scope="module")
def trained():
    """Make a contrastive model and its data."""
    data = shapes()
    torch.manual_seed(0)
    network = ContrastiveNetwork(data.shape, data.conditions, **SIZES).eval()
    return Contrastive(network, shape=data.shape, discrete=True, **OPTIONS), data


@pytest.fixture
def run(tmp_path, trained):
    """Make a directory like that of a run of model=contrastive, and return its network."""
    model, data = trained
    for name, left in model.artifacts().items():
        torch.save(left, tmp_path / name)
    return tmp_path, model.network, data


def test_measures_contrastive_refuses_run_of_other_image_shape(run, monkeypatch):
    """The tower averages over an image, so it takes any size; on low images retrieval was wrong."""
    path, _, data = run
    monkeypatch.setattr(build, "ImageReference", lambda *given: given[-2])
    guides = SimpleNamespace(classifier=lambda *_, **__: object())

    def embedder(data, contrastive=None, classifier="x"):
        node = {"n": 8, "classifier": classifier, "inception": "y", "contrastive": contrastive}
        return build._build_reference({"measures": node, "seed": 1}, data, guides, {})

    low, same = shapes(size=8, embeddings=path), shapes(embeddings=path)
    assert embedder(low) is None and embedder(same) is same.embedder
    assert embedder(data) is None and embedder(data, path).shape == data.shape
    refused(
        lambda: embedder(low, path), f"measures.contrastive={path}: trained on images (3, 16, 16)"
    )


def test_embeddings_are_conditions_of_captioned_data(run):
    path, network, plain = run
    data = shapes(embeddings=path)
    check_splits_match_declaration(data)
    assert data.conditions == plain.conditions | {
        "embedding": Vectors(D),
        "text_embedding": Vectors(D),
    }
    for name, split in data.splits.items():
        text = plain.splits[name].condition[torch.arange(len(split))].parts["text"]
        x = split.batch(torch.arange(len(split))).x
        with torch.no_grad():
            expected = network(x, text)
        for part, unit in zip(("embedding", "text_embedding"), expected, strict=True):
            torch.testing.assert_close(split.condition.parts[part].value, unit * math.sqrt(D))
    asked = data.encode_prompts(["three red squares"])
    torch.testing.assert_close(
        asked.parts["text_embedding"].value, data.embedder.texts(asked.parts["text"])
    )
    assert "embedding" not in asked.parts, "no prompt says it: a prior draws it"


def test_low_resolution_data_use_embeddings_of_full_images(run):
    """So a decoder draws low pictures from the same embeddings as the upsampler."""
    whole, low = shapes(embeddings=run[0]), shapes(embeddings=run[0], size=8)
    check_splits_match_declaration(low)
    assert low.shape == (3, 8, 8) and low.encoders == whole.encoders
    for name, split in low.splits.items():
        of_both = [found.splits[name].condition.parts["embedding"].value for found in (whole, low)]
        assert torch.equal(*of_both)
        every = torch.arange(len(split))
        assert torch.equal(
            split.batch(every).x, whole.splits[name].batch(every).condition.parts["low"].value
        )


def test_image_embeddings_are_data_of_the_same_items(run):
    base = shapes(embeddings=run[0])
    data = ImageEmbeddings(unset(), run[0], batch_size=4)
    data.setup()
    check_splits_match_declaration(data)
    assert data.shape == (D,) and data.known_as == "embedding" and data.levels is None
    assert set(data.conditions) == set(base.conditions) - {"embedding"}
    for name, split in data.splits.items():
        assert torch.equal(split.values, base.splits[name].condition.parts["embedding"].value)
        assert torch.equal(split.labels, base.splits[name].labels)
        torch.testing.assert_close(split.values.square().mean(1), torch.ones(len(split)))
    assert set(data.encode_prompts(["a red square"]).parts) == {"text", "text_embedding"}


def test_fingerprint_of_embeddings_depends_on_encoder_weights(run):
    """Their own last digits may change with the machine or the number of threads."""
    path, network, plain = run
    data, again = shapes(embeddings=path), shapes(embeddings=path)
    again.splits["train"].condition.parts["embedding"].value.mul_(1 + 1e-6)
    assert fingerprint(data).data == fingerprint(again).data != fingerprint(plain).data
    prior = ImageEmbeddings(unset(), path)
    prior.setup()
    found = fingerprint(prior).data
    prior.splits["test"].values.mul_(1 + 1e-6)
    assert fingerprint(prior).data == found
    left = torch.load(path / "encoder.pt", weights_only=True)
    left["state"]["log_scale"] += 1
    torch.save(left, path / "encoder.pt")
    other = ImageEmbeddings(unset(), path)
    other.setup()
    assert (
        fingerprint(other.base).data != fingerprint(data).data and fingerprint(other).data != found
    )


def test_embedder_refuses_corrupt_weights(run):
    path, network, _ = run
    file, weight = path / "encoder.pt", max(network.parameters(), key=torch.numel)
    data = file.read_bytes()
    at = data.index(weight.detach().numpy().tobytes())
    file.write_bytes(data[: at + 3] + bytes([data[at + 3] ^ 1]) + data[at + 4 :])
    refused(lambda: Embedder(path), UNREADABLE)


def test_embedder_refuses_malformed_encoder_file(run, tmp_path):
    path = run[0]
    file = path / "encoder.pt"
    good = torch.load(file, weights_only=True)
    nowhere = (
        "data.embeddings=/nowhere: its encoder.pt cannot be read; pass the directory of a "
        "finished run"
    )
    refused(lambda: Embedder("/nowhere"), nowhere)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "encoder.pt"
    weight = "image_tower.last.bias"
    bad = [
        {},
        good | {"_target_": "triptych.networks.mlp.MLP"},
        good | {"_target_": "os.system"},
        good | {"sizes": SIZES | {"depth": 10**9}},
        good | {"sizes": SIZES | {"width": 10**7}},
        good | {"state": {}},
        good | {"state": good["state"] | {weight: torch.zeros(1).expand(2**40)}},
        good | {"shape": "red"},
        good | {"more": Bytes()},  # torch would allocate them
    ]
    for left in bad:
        torch.save(left, other)
        refused(lambda: Embedder(other), UNREADABLE)
    other.write_bytes(file.read_bytes()[:500])
    refused(lambda: Embedder(other), UNREADABLE)
    digits = DigitsCaptioned(encoder=Words(), embeddings=path)
    refused(digits.setup, "trained on images (3, 16, 16) ", " the data have (1, 8, 8)")
    refused(lambda: ImageEmbeddings(Digits(), path), "data.base: Digits has no captions")


# the sphere
# ---------------------------------------------------------------------------------------------


def test_slerp_follows_great_circle():
    """Shoemake 1985: along the great circle from a to b, at a share of their angle."""
    a, b = (
        normalize(torch.randn(1, 5, generator=torch.Generator().manual_seed(i)).double())
        for i in (0, 1)
    )
    a, b = 3 * a, 3 * b
    share = torch.linspace(0, 1, 5).double()
    path = slerp(a.expand(5, -1), b.expand(5, -1), share)
    torch.testing.assert_close(path[[0, -1]], torch.cat([a, b]))
    torch.testing.assert_close(path.norm(dim=1), torch.full((5,), 3.0).double())
    whole = torch.cosine_similarity(a, b).arccos()
    angle = torch.cosine_similarity(path[1:], a).arccos()
    torch.testing.assert_close(angle, share[1:] * whole)
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.3]).double()), a)


def test_on_sphere_normalizes_drawn_embeddings():
    drawn = project_to_sphere(torch.randn(4, 9))
    torch.testing.assert_close(drawn.square().mean(1), torch.ones(4))
    torch.testing.assert_close(project_to_sphere(drawn), drawn)


def test_embedder_texts_without_mask_use_all_tokens(run):
    embedder = Embedder(run[0])
    tokens = torch.randn(2, run[2].encoder.length, run[2].encoder.width)
    there = torch.ones(tokens.shape[:2], dtype=torch.bool)
    torch.testing.assert_close(
        embedder.texts(Part(tokens)), embedder.texts(Part(tokens, mask=there))
    )
