"""The classifier trained by the usual command, guidance by it, and allowed pairs of models."""

import pytest
import torch

from tests.refusal import refused
from tests.run.commands import evaluated
from triptych.config.identity import data_identity
from triptych.data.build import build_data
from triptych.diffusion.sampler import DDIM
from triptych.models.classifier import Classifier
from triptych.run.drawing import Drawing
from triptych.run.execute import execute
from triptych.run.guidance import build_guided_denoiser
from triptych.run.model import build_model
from triptych.run.other_runs import OtherRuns
from triptych.run.reopen import reopen

SMALL = ("model=classifier", "model.network.width=8", "optimizer.lr=0.01")
BRIEF = (
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "test=false",
)  # for what is no accuracy


@pytest.fixture
def trained(prepared):
    """Return the checkpoint of a small classifier, and its summary."""

    def make(*overrides, path="classifier"):
        run = prepared(*SMALL, *overrides, path=path)
        return str(run / "checkpoints" / "last.ckpt"), execute(run)

    return make


def test_classifier_run_reports_accuracy_and_reopens(trained):
    ckpt, summary = trained(
        "model.noise=false", "trainer.max_steps=120", "trainer.val_check_interval=60"
    )
    accuracy = summary["test"]["accuracy"]
    assert accuracy["n"] == 297 and accuracy["mean"] > 0.5  # chance: 0.1
    assert summary["samples"] is None
    opened = reopen(ckpt)
    assert isinstance(opened.model, Classifier)
    test = opened.data.splits["test"].batch(torch.arange(297))
    features, logits = opened.model.features_and_logits(test.x)
    assert features.shape == (297, 64)
    right = (logits.argmax(1) == test.condition.label).double().mean().item()
    assert right == pytest.approx(accuracy["mean"])


def test_repeats_applies_to_noisy_classifier_only(trained):
    def measured(ckpt, *more):
        return evaluated(ckpt, "split=val", *more)["cross_entropy"]["mean"]

    noisy = trained(*BRIEF)[0]
    assert measured(noisy, "repeats=5") != measured(noisy) == measured(noisy, "repeats=2")


def test_classifier_guidance_changes_samples_of_unconditional_model(trained, prepared):
    ckpt, _ = trained(*BRIEF)
    config = prepared("guidance=classifier", f"guidance.classifier={ckpt}", path="guided").config()
    data = build_data(config)
    model = build_model(config, data).eval()
    wrapped = build_guided_denoiser(model, data, config, OtherRuns(config))
    assert wrapped.conditional and not any(p.requires_grad for p in wrapped.classifier.parameters())
    x = Drawing(model, data, DDIM(3), wrapped).samples(4, seed=0)
    assert not torch.equal(x, Drawing(model, data, DDIM(3)).samples(4, seed=0))


def test_incompatible_guidance_checkpoint_is_refused(trained, prepared, finished):
    ring, _ = trained("data=ring", "denoiser=mlp", *BRIEF, path="on_ring")
    clean, _ = trained("model.noise=false", *BRIEF, path="clean")
    for guide, *words in (
        (ring, f"guidance.classifier={ring}", "trained on Ring(", "pass a run trained on Digits"),
        (clean, "needs a classifier trained with model.noise=true"),
        ("/nowhere", "guidance.classifier=/nowhere: no such file"),
        ("exact", "these data have no known density"),
    ):
        run = prepared(
            "guidance=classifier", f"guidance.classifier={guide}", path=words[-1].split()[-1]
        )
        refused(lambda run=run: execute(run), *words)
    auto = prepared("guidance=auto", path="auto")
    refused(lambda: execute(auto), "guidance.weak=null: needs a checkpoint")
    run = finished("test=false", "samples.n=0", path="diffusion")
    labelled = "model.conditional=true", "model.label_dropout=0"
    weak = finished(*labelled, "test=false", "samples.n=0", path="weak")
    unlabelled = prepared(
        "guidance=auto", f"guide={weak.path}", "guidance.scale=2", path="unlabelled"
    )
    refused(
        lambda: execute(unlabelled),
        f"guidance.weak={weak.path}: model was never trained without label",
    )
    guides, ckpt = OtherRuns(run.config()), str(run / "checkpoints" / "last.ckpt")
    refused(lambda: guides.classifier("measures.classifier", ckpt, False), "not a classifier;")


def test_data_identity_ignores_batch_size_root_and_seed():
    a = {"_target_": "x.Ring", "modes": 8, "batch_size": 1, "root": "/a", "seed": 1}
    assert data_identity(a) == data_identity(a | {"batch_size": 2, "root": "/b", "seed": 3})
    assert data_identity(a) != data_identity(a | {"modes": 7})
