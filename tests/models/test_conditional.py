"""Labels left out in training, and guidance from the doors: what is told, what is refused."""

import pytest
import torch

from triptych.data.batch import Batch
from triptych.data.build import build_data
from triptych.diffusion.condition import Condition, Labels, dropout
from triptych.diffusion.sampler import DDIM
from triptych.errors import UserError
from triptych.run.drawing import Drawing
from triptych.run.execute import execute
from triptych.run.guided import Guides, guided
from triptych.run.model import build_model

CFG = {"_target_": "triptych.diffusion.guidance.ClassifierFree", "scale": 2.0}


def test_labels_are_left_out_in_their_share_and_as_the_step_says():
    y = torch.arange(20_000) % 10
    told = Condition(label=y)

    def kept(condition, *where, **more):
        part = dropout(condition, 0.1, *where, **more).parts["label"]
        return torch.where(part.present, part.value, 10)

    dropped = kept(told, seed=1, step=3)
    gone = dropped == 10
    assert abs(gone.double().mean().item() - 0.1) < 3 * (0.09 / len(y)) ** 0.5
    assert torch.equal(dropped[~gone], y[~gone])
    assert torch.equal(dropped, kept(told, seed=1, step=3))
    assert not torch.equal(dropped, kept(told, seed=1, step=4))
    halves = [kept(part, 1, 3, rank, 2) for rank, part in enumerate(told.split(10_000))]
    assert torch.equal(torch.cat(halves), dropped)


@pytest.fixture
def model(prepared):
    def make(*overrides):
        config = prepared(*overrides, path="-".join(overrides) or "plain").config()
        data = build_data(config)
        return build_model(config, data).eval(), data, config

    return make


def test_the_network_is_told_the_labels_that_are_left(model):
    made, data, _ = model("model.conditional=true", "model.label_dropout=0.5")
    assert made.denoiser.conditional and made.denoiser.network.conditions == {"label": Labels(10)}
    told = []
    made.denoiser.network.register_forward_pre_hook(lambda _, args: told.append(args[2]))
    made.loss(data.splits["train"].batch(torch.arange(200)), 0, 0, 1)
    share = 1 - told[0].parts["label"].present.double().mean().item()
    assert 0.35 < share < 0.65


def test_an_unconditional_model_is_told_nothing(model):
    made, data, config = model()
    assert not made.denoiser.conditional
    batch = data.splits["train"].batch(torch.arange(4))
    other = Batch(batch.x, Condition(label=(batch.condition.label + 1) % 10), batch.index)
    assert torch.equal(made.loss(batch, 0, 0, 1), made.loss(other, 0, 0, 1))
    with pytest.raises(UserError, match=r"guidance.scale=2.0.*model.conditional=true"):
        guided(made, data, config | {"guidance": CFG}, Guides(config))


def test_scale_one_draws_what_the_conditional_model_draws(model):
    made, data, config = model("model.conditional=true")
    with torch.no_grad():  # the last layer starts at zero, where labels make no difference
        for p in made.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    plain = Drawing(made, data, DDIM(3)).samples(6, seed=0)
    asked = lambda s: config | {"guidance": CFG | {"scale": s}}  # noqa: E731
    drawn = {
        s: Drawing(made, data, DDIM(3), guided(made, data, asked(s), Guides(config))).samples(6, seed=0)
        for s in (0.0, 1.0, 3.0)
    }
    assert torch.equal(drawn[1.0], plain)
    assert all(p.requires_grad for p in made.parameters())  # guided before it is trained, too
    assert not torch.equal(drawn[3.0], plain) and not torch.equal(drawn[0.0], plain)


def test_label_dropout_outside_its_range(prepared):
    with pytest.raises(UserError, match=r"model.label_dropout=1.5: must be a number in \[0, 1\]"):
        execute(prepared("model.label_dropout=1.5"))


def test_parts_that_the_data_do_not_have(prepared, model):
    with pytest.raises(UserError, match=r"model.label_dropout.text: no such part; must be label"):
        model("model.conditional=true", "model.label_dropout={text:0.1}")
    made, data, config = model("model.conditional=true", "model.label_dropout={label:0.1}")
    with pytest.raises(UserError, match=r"guidance.parts: 'text' is no part .* choose from label"):
        guided(made, data, config | {"guidance": CFG | {"parts": ["text"]}}, Guides(config))


def test_threshold_keeps_samples_in_range(model):
    made, data, config = model("threshold=static")
    wrapped = guided(made, data, config, Guides(config))
    # all but the last bit of noise comes from a guess within [-1, 1]
    assert Drawing(made, data, DDIM(3), wrapped).samples(4, seed=0).abs().max() < 1.1
    assert Drawing(made, data, DDIM(3)).samples(4, seed=0).abs().max() > 2


def test_a_class_asked_for_at_the_door(prepared, door, inside, root):
    run = prepared("model.conditional=true")
    execute(run)
    command = (
        "triptych.cli.sample",
        f"ckpt={run / 'checkpoints' / 'last.ckpt'}",
        "n=2",
        "sampler.steps=2",
        f"out={root}/x",
    )
    for label in ("10", "-1", "1.5", "cat", "true"):
        done = inside(*command, f"label={label}")
        assert done.returncode == 1 and not (root / "x").exists()
        said = label.capitalize() if label == "true" else label
        assert done.stderr.strip() == f"error: label={said}: must be a class from 0 to 9"
    assert door(*command, "label=9").returncode == 0 and (root / "x" / "samples.png").is_file()
