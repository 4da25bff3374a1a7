"""Which runs form a cascade: each condition is drawn by an earlier stage, in shape and encoding."""

from types import SimpleNamespace

import pytest

from tests.refusal import refused
from triptych.diffusion.condition import Images, Tokens, Vectors
from triptych.errors import UserError
from triptych.run import reopen

TEXT, LOW = {"text": Tokens(4, 5)}, {"low": Images((3, 8, 8))}


def run(known_as=None, shape=(3, 16, 16), told=(), conditions=None, encoder=("words", 4)):
    """Return the part of an opened run that the checks read."""
    model = SimpleNamespace(conditional=list(told))
    data = SimpleNamespace(
        known_as=known_as,
        shape=shape,
        conditions=conditions or TEXT | LOW,
        name="shapes",
        encoders=encoder,
    )
    return SimpleNamespace(model=model, data=data, config={})


BASE = {"known_as": "low", "shape": (3, 8, 8), "told": ["text"], "conditions": TEXT}
FINE = {"told": ["text", "low"]}


@pytest.fixture
def opened(monkeypatch):
    def open_(*runs):
        left = iter(runs)
        monkeypatch.setattr(reopen, "reopen", lambda *_, **__: next(left))
        return reopen.open_stages("cascade", [f"run{i}" for i in range(len(runs))])

    return open_


def test_open_stages_accepts_matching_runs(opened):
    assert len(opened(run(**BASE), run(**FINE))) == 2
    vector = {"embedding": Vectors(6)}
    prior = run("embedding", (6,), ["text"], TEXT)
    assert len(opened(prior, run(told=["embedding"], conditions=vector))) == 2
    decoder = run("low", (3, 8, 8), ["embedding"], TEXT | vector)
    assert len(opened(prior, decoder, run(told=["embedding", "low"], conditions=vector | LOW))) == 3


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            BASE | {"shape": (3, 4, 4)},
            FINE,
            ("cascade[1]=run1", "'low' of size 3x8x8", "draws 3x4x4"),
        ),
        (BASE, FINE | {"encoder": ("words", 5)}, ("cascade[1]=run1", "text encoder")),
        (BASE, FINE | {"encoder": ("transformers", 4)}, ("cascade[1]=run1", "text encoder")),
        (BASE, {"told": ["text"]}, ("cascade[1]=run1", "not conditioned on 'low'")),
        (BASE | {"known_as": None}, {"told": ["text"]}, ("cascade[1]=run1", "not conditioned on")),
        (FINE, BASE, ("cascade[0]=run0", "needs 'low', which no earlier stage draws")),
    ],
)
def test_open_stages_refuses_mismatched_runs(opened, first, second, words):
    refused(lambda: opened(run(**first), run(**second)), *words)


def test_model_stages_refuses_data_without_levels(monkeypatch):
    """In a DALL-E 2 chain, nats of embeddings do not add to bits of pictures."""
    runs = [
        run("embedding", (6,), ["text"], TEXT),
        run(told=["embedding"], conditions={"embedding": Vectors(6)}),
    ]
    runs[0].data.levels, runs[1].data.levels = None, 16
    left = iter(runs)
    monkeypatch.setattr(reopen, "reopen", lambda *_, **__: next(left))
    config = {"model": {"stages": ["prior", "decoder"]}, "threads": 1}
    words = (
        "model.stages[0]=prior: a bound of a cascade needs data with discrete levels",
        "triptych-sample cascade=",
    )
    refused(lambda: reopen.open_model_stages(config, runs[1].data), *words)


def test_condition_source_may_depend_on_earlier_source():
    """With condition_from={embedding: PRIOR, low: DECODER}, the prior conditions the decoder."""
    every = TEXT | LOW | {"embedding": Vectors(6)}
    decoder, data = run("low", (3, 8, 8), ["embedding"], every), run(conditions=every).data
    reopen.check_condition_source("low", "low", decoder, data, earlier=["embedding"])
    with pytest.raises(UserError, match="needs 'embedding', which no earlier stage draws"):
        reopen.check_condition_source("low", "low", decoder, data)
