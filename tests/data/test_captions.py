"""Data with captions: tokens as part of the condition, prompts, a folder of pairs."""

import pytest
import torch

from triptych.data.batch import Split
from triptych.data.build import check_splits_match_declaration, fingerprint
from triptych.data.captions import CaptionedFolder, DigitsCaptioned
from triptych.data.digits import Digits
from triptych.data.text import Words
from triptych.diffusion.condition import Condition, Labels, Tokens

from .helpers import refused, save_images


@pytest.fixture(scope="module")
def digits():
    data = DigitsCaptioned(encoder=Words())
    data.setup()
    return data


def test_text_condition_is_encoded_caption(digits):
    check_splits_match_declaration(digits)
    assert digits.conditions == {"label": Labels(10), "text": Tokens(12, digits.encoder.width)}
    batch = digits.splits["val"].batch(torch.tensor([3, 0, 7]))
    tokens, mask = digits.encoder.encode([digits.captions["val"][i] for i in (3, 0, 7)])
    part = batch.condition.parts["text"]
    assert part.value.equal(tokens) and part.mask.equal(mask)
    asked = digits.encode_prompts(["the digit seven"]).parts["text"]
    assert asked.value.equal(digits.encoder.encode(["the digit seven"])[0])


def test_digits_captioned_keeps_items_and_names_class_in_caption(digits):
    plain = Digits()
    plain.setup()
    for name, split in digits.splits.items():
        assert split.values.equal(plain.splits[name].values) and split.labels.equal(
            plain.splits[name].labels
        )
        for caption, label in zip(digits.captions[name], split.labels, strict=True):
            assert digits.names[label] in caption.split()
    assert len(set(digits.captions["train"])) == 10 * len(digits.phrasings)


def test_fingerprint_depends_on_captions(digits):
    other = DigitsCaptioned(encoder=Words())
    other.setup()
    assert fingerprint(other).data == fingerprint(digits).data
    text = other.splits["test"].condition.parts["text"].value
    text.order[[0, -1]] = text.order[[-1, 0]]
    assert fingerprint(other).data != fingerprint(digits).data


class Networks(Words):
    """An encoder like a network, whose last digits differ on another machine."""

    computes, by = True, 1.0

    def embed(self, pieces):
        tokens, mask = super().embed(pieces)
        return tokens * self.by, mask


def test_fingerprint_ignores_rounding_of_network_tokens():
    datas = [DigitsCaptioned(encoder=Networks()) for _ in range(3)]
    datas[1].encoder.by = 1 + 1e-6
    datas[2].phrasings = ("{}", "the digit {}", "a handwritten {}", "the number {} by a hand")
    for data in datas:
        data.setup()
    here, there, other = map(fingerprint, datas)
    assert (there.data, there.split) == (here.data, here.split)
    assert other.data != here.data and other.split != here.split


def test_meaning_of_ambiguous_caption_is_minus_one(digits):
    captions = ["the digit seven", "a digit", "a digit"]
    other = DigitsCaptioned(encoder=Words())
    other.captions = {"train": captions}
    other.splits = {
        "train": Split(torch.zeros(3, 1, 8, 8), Condition(label=torch.tensor([7, 1, 2])), 17)
    }
    assert other.meaning(captions).flatten().tolist() == [7, -1, -1]
    assert digits.meaning(["the digit seven", "unknown"]).flatten().tolist() == [7, -1]


def test_prompt_without_captioned_data_is_refused():
    refused(lambda: Digits().encode_prompts(["seven"]), "prompt='seven'", "digits", "captioned")


def pairs(folder, captions):
    save_images(folder, len(captions))
    for i, caption in enumerate(captions):
        if caption is not None:
            (folder / f"{i:02d}.txt").write_bytes(caption)


def opened(folder, **keys):
    data = CaptionedFolder(encoder=Words(), root=folder, size=8, **keys)
    data.setup()
    return data


def test_captioned_folder_reads_txt_beside_image(tmp_path):
    names = [f"picture {word}" for word in "a b c d e f g h i j k l m n o p q r s t".split()]
    pairs(tmp_path / "root", [f"\n {name}\n".encode() for name in names])
    data = opened(tmp_path / "root")
    check_splits_match_declaration(data)
    assert data.num_classes == 0 and list(data.conditions) == ["text"]
    for name, split in data.splits.items():
        red = split.values[slice(0, None)][:, 0, 0, 0].tolist()  # image i is (i, 0, 100) all over
        assert data.captions[name] == [names[i] for i in red]


@pytest.mark.parametrize(
    ("bytes_", "word"),
    [
        (None, "07.txt"),
        (b" \n", "has 0 characters"),
        (b"\xff\xfe\x00", "cannot read"),
        (b"?!", "no word"),
    ],
)
def test_captioned_folder_refuses_missing_or_invalid_caption(tmp_path, bytes_, word):
    captions = [b"a picture"] * 12
    captions[7] = bytes_
    pairs(tmp_path, captions)
    refused(lambda: opened(tmp_path), "data.root", word)
