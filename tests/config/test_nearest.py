"""Which name is suggested in place of one that does not exist."""

import pytest

from triptych.config.nearest import nearest

KEYS = [
    "data._target_",
    "data.test_size",
    "data.train_size",
    "data.val_size",
    "model.test_size",
    "trainer.max_steps",
]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("data.n_test", "data.test_size"),
        ("data.val", "data.val_size"),
        ("data.tets_size", "data.test_size"),
        ("trainer.steps", "trainer.max_steps"),
        ("datta.train_size", "data.train_size"),
        ("train_size", "data.train_size"),
        ("test_size", "data.test_size or model.test_size"),
    ],
)
def test_the_name_that_was_meant(typed, meant):
    assert nearest(typed, KEYS) == f"did you mean {meant}?"


def test_what_is_like_nothing_is_answered_with_all_names():
    assert nearest("sampler", KEYS[:2]) == "choose from data._target_, data.test_size"
