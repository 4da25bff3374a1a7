"""Names that follow from a run's settings, and suggestions for unknown names."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.config.habits import suggest_name
from triptych.config.identity import quote, run_name, slug


@given(st.text(max_size=300))
def test_a_slug_is_one_safe_file_name(text):
    made = slug(text)
    assert (
        made
        and len(made) <= 120
        and "/" not in made
        and made not in (".", "..")
        and "\0" not in made
    )


@given(st.text(max_size=300), st.text(max_size=300))
def test_slug_is_unique_per_text(one, other):
    assert (slug(one) == slug(other)) == (one == other)


def test_slug_keeps_plain_overrides_readable():
    assert slug("objective=x0,seed=1") == "objective=x0,seed=1"


def test_run_name_keeps_given_name_and_generates_unique_default():
    assert run_name("mine") == "mine"
    assert run_name(None) != run_name(None)


@given(
    st.text(
        st.one_of(st.sampled_from("'\\ \"$,={}[]()#%:~é漢"), st.characters(codec="utf-8")),
        max_size=30,
    )
)
@settings(deadline=None)
def test_quote_round_trips_through_hydra_parser(text):
    text = "".join(c for c in text if c.isprintable())
    override = OverridesParser.create().parse_override(f"key={quote(text)}")
    assert override.value() == text and not override.is_sweep_override()


KEYS = (
    "data._target_ data.test_size data.train_size data.val_size model.test_size trainer.max_steps"
).split()


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
def test_nearest_suggests_mistyped_key(typed, meant):
    assert suggest_name(typed, KEYS) == f"did you mean {meant}?"
    assert (
        suggest_name("sampler", KEYS[:2]) == "choose from data._target_, data.test_size"
    )  # like nothing
