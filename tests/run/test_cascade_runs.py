"""A cascade of two real runs: sampled by prompts, evaluated as one model, refused in one line."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

import triptych
from tests.refusal import refused
from tests.run.commands import evaluated
from triptych.cli.sample import sample
from triptych.config.compose import compose_command, without_hydra
from triptych.data.augment import ConditioningNoise, Flip
from triptych.diffusion.condition import AUGMENTATION, Condition, Images, Vectors
from triptych.run.directory import RunDirectory
from triptych.run.drawing import Drawing
from triptych.run.execute import execute
from triptych.run.reopen import reopen
from triptych.run.sample import (
    _conditioning_noise,
    build_cascade_drawing,
    build_condition,
    build_run_drawing,
    draw_all_sources,
)

SHAPES = (
    "data=shapes data.train_size=40 data.val_size=8 data.test_size=12 data.held_out=0 samples.n=0 "
    "sampler=ddim objective=levels denoiser.network.blocks=1"
).split()
QUICK = (
    "trainer.accelerator=cpu threads=1 bound.repeats=2 bound.val_repeats=1 sampler.steps=2".split()
)
BRIEF = ["trainer.max_steps=2", "trainer.val_check_interval=2"]
# The networks have few tensors, because their checkpoints are opened often.
BASE = [
    *SHAPES,
    *BRIEF,
    "data.size=8",
    "denoiser=mlp",
    "denoiser.network.width=8",
    "model.conditional=[text]",
]
FINE = [
    *SHAPES,
    *BRIEF,
    "denoiser=unet",
    "denoiser.network.widths=[8]",
    "+denoiser.network.text_at=[16]",
]
FINE += ["model.conditional=[text,low]", "samples.n=2"]  # the end of a run, with its pictures
FINE += ["augmentation=conditioning_noise", "model.label_dropout={text:0.1}"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("cascade")


@pytest.fixture
def runs(prepared, home):
    """Train the base stage, the fine stage and the cascade of both, once; return directories."""
    made = {}
    for name, overrides in (("base", BASE), ("fine", FINE)):
        made[name] = home / name
        if not made[name].is_dir():
            run = prepared(*overrides, path=name)
            execute(run)
            run.path.rename(made[name])
    return made


def asked(*overrides):
    return without_hydra(compose_command("sample", [*overrides]))


def opened(runs, *overrides, stages=("base", "fine")):
    paths = ",".join(f"'{runs[name]}'" for name in stages)
    values = OmegaConf.to_container(asked(f"cascade=[{paths}]", *overrides), resolve=True)
    return build_cascade_drawing(values), values


def test_prompts_are_drawn_low_first_and_told_to_both(runs):
    cascade, values = opened(
        runs, "prompt=[three red squares,a blue circle]", "n=5", "batch_size=3"
    )
    told = []
    for drawing in (cascade.stages["low"], cascade):
        network = drawing.model.denoiser.network
        network.register_forward_pre_hook(lambda _, args: told.append(args[2]))
    drawn = draw_all_sources(cascade, values)
    sizes = {name: tuple(x.shape) for name, x in drawn.items()}
    assert sizes == {"low": (5, 3, 8, 8), "samples": (5, 3, 16, 16)}
    prompts = (
        cascade.data.encode_prompts(["three red squares", "a blue circle"]).parts["text"].value
    )
    text = torch.cat([c.parts["text"].value for c in told if len(c) in (2, 3)][:1])
    assert text.equal(prompts[[0, 1, 0]])
    lows = [c.parts["low"].value for c in told if "low" in c.parts]
    assert lows and any(low.equal(drawn["low"][: len(low)]) for low in lows)
    levels = (drawn["low"] + 1) * 7.5
    assert (levels - levels.round()).abs().max() < 1e-4  # as the data's low pictures are
    assert all(AUGMENTATION not in c.parts for c in told)


def test_noise_is_on_the_low_picture_and_told(runs):
    change = "stages=[{},{sampler.steps:1}]"
    cascade, values = opened(runs, "prompt=a blue circle", "n=200", "noise=0.5", change)
    assert [one.sampler.steps for one in (cascade.stages["low"], cascade)] == [3, 1]
    told = []
    cascade.model.denoiser.network.register_forward_pre_hook(lambda _, args: told.append(args[2]))
    drawn = draw_all_sources(cascade, values)
    (first,) = {len(c) for c in told}
    assert first == 200 and told[0].parts[AUGMENTATION].value.eq(0.5).all()
    zero = torch.zeros_like(drawn["low"])
    half = torch.full((200,), 0.5)
    eps = (
        told[0].parts["low"].value - ConditioningNoise.add_noise(drawn["low"], half, zero)
    ) / 0.5**0.5
    assert abs(eps.square().mean() - 1) < 4 * (2 / eps.numel()) ** 0.5


def test_noise_is_on_the_part_that_training_noised(runs, monkeypatch):
    """The conditions of DALL-E 2's stages, of which only the noised low picture gets noise.

    The decoder is conditioned on an embedding, the upsampler on the embedding and the low picture.
    """
    told = {"embedding": Vectors(6), "low": Images((3, 8, 8))}
    whole = Condition(embedding=torch.ones(2, 6), low=torch.ones(2, 3, 8, 8))
    steps = [Flip(told=True), ConditioningNoise("low")]
    model, data = (
        SimpleNamespace(conditional=[*told]),
        SimpleNamespace(conditions=told, augmentations=steps),
    )
    prepare = _conditioning_noise(Drawing(model, data, None), 0.5)
    found = prepare(whole, torch.Generator().manual_seed(0)).parts
    assert found["embedding"].value.equal(torch.ones(2, 6)) and not found["low"].value.eq(1).any()
    assert found[AUGMENTATION].value.tolist() == [[0.0, 0.5]] * 2
    data.augmentations = steps[:1]
    assert _conditioning_noise(Drawing(model, data, None), 0.5) is None
    monkeypatch.setattr("triptych.run.sample._conditioning_noise", lambda *_: None)
    refused(
        lambda: opened(runs, "noise=0.5"), "noise=0.5: no stage", "augmentation=conditioning_noise"
    )


def test_without_a_prompt_the_captions_of_held_out_items_are_asked_for(runs):
    cascade, values = opened(runs, "n=3")
    condition = build_condition(cascade, values, 3)
    val = cascade.data.splits["val"].condition[torch.arange(3)]
    assert condition.parts["text"].value.equal(val.parts["text"].value)


def test_one_run_is_asked_a_prompt(runs):
    run = reopen(str(runs["base"]))
    plain = asked(f"ckpt='{runs['base']}'", "n=4", "sampler.steps=2")
    keys = OmegaConf.to_container(plain, resolve=True)
    drawn = []
    for prompt in (["one red circle", "two blue squares"], "one red circle", None):
        given = keys | {"prompt": prompt}
        drawn.append(draw_all_sources(build_run_drawing(run, given), given)["samples"])
    assert drawn[0][::2].equal(drawn[1][::2]) and not drawn[0].equal(drawn[1])
    told = []
    run.model.denoiser.network.register_forward_pre_hook(lambda _, args: told.append(args[2]))
    small = keys | {"batch_size": 3, "sampler": keys["sampler"] | {"steps": 1}}
    draw_all_sources(build_run_drawing(run, small), small)
    text = torch.cat([one.parts["text"].value for one in told])
    assert text.equal(run.data.splits["val"].condition.parts["text"].value[:4]), (
        "in turn over batches"
    )
    unknown = keys | {"prompt": "one purple circle"}
    refused(lambda: build_run_drawing(run, unknown), "prompt='one purple circle'")
    refused(
        lambda: build_run_drawing(run, keys | {"prompt": "red", "label": 3}), "label=3", "prompt"
    )
    run.model.conditional, run.model.label_dropout = ["text", "label"], {"text": 0.1}
    refused(
        lambda: build_run_drawing(run, keys | {"prompt": "one red circle"}),
        "prompt=",
        "without label",
    )


def test_the_cascades_bound_is_the_sum_of_its_stages(runs, prepared):
    stages = f"model.stages=['{runs['base']}','{runs['fine']}']"
    data = [o for o in SHAPES if not o.startswith("denoiser") and not o.startswith("objective")]
    run = prepared(*QUICK, *data, "model=cascade", stages, "samples.n=4", path="both", tiny=False)
    found = execute(run)["test"]
    base, fine = (RunDirectory(runs[name]).summary()["test"] for name in ("base", "fine"))
    for term in ("", "_prior", "_reconstruction", "_diffusion"):
        low, high, whole = (one[f"bpd{term}"]["mean"] for one in (base, fine, found))
        assert whole == pytest.approx(low * 192 / 768 + high, rel=1e-5)
    assert found["bpd"]["n"] == 12 and found["bpd"]["draw_stderr"] > 0
    assert evaluated(run.path, "repeats=1")["bpd"]["mean"] != found["bpd"]["mean"]
    again = reopen(str(run.path))  # by its stages' runs, which its checkpoint names
    fine_weight = reopen(str(runs["fine"])).model.denoiser.network.last.weight
    assert torch.equal(again.model.stages[1].denoiser.network.last.weight, fine_weight)
    x = again.data.splits["test"].batch(torch.arange(2)).x
    refused(lambda: triptych.load(run.path).bound(x), "bound(x): condition=None; pass condition=")
    nested = runs | {"both": run.path}
    refused(
        lambda: opened(nested, stages=("both", "fine")),
        "cascade[0]=",
        "a cascade cannot be a stage",
    )
    wrong = [o for o in data if o != "data.held_out=0"]
    other = prepared(*QUICK, *wrong, "model=cascade", stages, path="other", tiny=False)
    refused(lambda: execute(other), "model.stages[0]=", "items differ from the part 'low'")


def test_stages_that_do_not_fit_are_refused(runs):
    other = runs | {"gone": runs["base"] / "gone"}
    refused(lambda: opened(other, stages=("gone", "fine")), "cascade[0]=", "gone")
    refused(
        lambda: opened(runs, "stages=[{trainer.max_steps:1}]"),
        "stages[0].trainer",
        "guidance.scale",
    )
    refused(lambda: opened(runs, "stages=[{sampler.step:1}]"), "stages[0].sampler.step")


def test_the_command_wants_one_run_or_a_cascade(runs):
    refused(lambda: sample(asked("n=1")), "ckpt: missing", "cascade=[RUN,RUN]")
    refused(lambda: sample(asked(f"ckpt='{runs['base']}'", "noise=0.5")), "noise=0.5", "cascade")
    both = [f"ckpt='{runs['base']}'", f"cascade=['{runs['base']}','{runs['fine']}']"]
    refused(lambda: sample(asked(*both)), "ckpt=", "cascade=")
