"""Labels that training drops, and guidance by commands: accepted and refused conditions."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.diffusion.steps import ensemble_members
from tests.refusal import refused, refused_command
from triptych.data.batch import Batch, Split
from triptych.data.build import build_data
from triptych.data.shapes import Shapes
from triptych.data.text import Words
from triptych.diffusion.condition import AUGMENTATION, MEMBER, Condition, Labels, Vectors
from triptych.diffusion.mixture import GaussianMixture
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.sampler import DDIM
from triptych.run.drawing import Drawing
from triptych.run.guidance import build_guided_denoiser
from triptych.run.measure import choose_conditions
from triptych.run.model import build_model, data_facts
from triptych.run.other_runs import OtherRuns, open_teacher
from triptych.run.reference import SampleReference

CFG = {"_target_": "triptych.diffusion.guidance.ClassifierFree", "scale": 2.0}


@pytest.fixture
def model(prepared):
    def make(*overrides):
        config = prepared(*overrides, path="-".join(overrides) or "plain").config()
        data = build_data(config)
        return build_model(config, data).eval(), data, config

    return make


def test_label_dropout_drops_share_of_labels(model):
    made, data, _ = model("model.conditional=true", "model.label_dropout=0.5")
    assert made.denoiser.conditional and made.denoiser.network.conditions == {"label": Labels(10)}
    told = []
    made.denoiser.network.register_forward_pre_hook(lambda _, args: told.append(args[2]))
    made.loss(data.splits["train"].batch(torch.arange(200)), 0, 0, 1)
    share = 1 - told[0].parts["label"].present.double().mean().item()
    assert 0.35 < share < 0.65


def test_unconditional_model_ignores_labels_and_refuses_guidance(model):
    made, data, config = model()
    assert not made.denoiser.conditional
    batch = data.splits["train"].batch(torch.arange(4))
    other = Batch(batch.x, Condition(label=(batch.condition.label + 1) % 10), batch.index)
    assert torch.equal(made.loss(batch, 0, 0, 1), made.loss(other, 0, 0, 1))
    free = config | {"guidance": CFG}
    refused(
        lambda: build_guided_denoiser(made, data, free, OtherRuns(config)),
        "guidance.scale=2.0",
        "model.conditional=true",
    )


def parts_read(denoiser, call):
    """Return the conditions with which ``call()`` calls the network of ``denoiser``."""
    conditions = []
    hook = denoiser.network.register_forward_pre_hook(lambda _, args: conditions.append(args[2]))
    call()
    hook.remove()
    return conditions


@pytest.mark.parametrize("conditional", ["false", "true"])
def test_ensemble_member_of_item_is_independent_of_world_size(model, conditional):
    made, data, _ = model("+denoiser.network.members=3", f"model.conditional={conditional}")
    batch = data.splits["train"].batch(torch.arange(12))
    for step in range(3):
        dealt = ensemble_members(3, 12, made.seed, step)
        for world in (1, 2, 3):
            for rank, places in enumerate(torch.arange(12).chunk(world)):
                part = Batch(batch.x[places], batch.condition[places], batch.index[places])
                loss = partial(made.loss, part, step, rank, world)
                (condition,) = parts_read(made.denoiser, loss)
                assert condition.part(MEMBER).value.equal(dealt[places])
    for condition in parts_read(made.denoiser, lambda: made.elbo(batch, 0, 1)):
        assert condition is None or condition.part(MEMBER) is None


def test_distillation_teacher_uses_all_ensemble_members(model):
    """A teacher answers with all members even if a student's item trains a single member."""
    keys = ("+denoiser.network.members=2", "objective.steps=4")
    made, data, _ = model(*keys)
    teacher, *_ = model(*keys, "seed=1")
    made.objective.teacher = teacher.denoiser
    batch = data.splits["train"].batch(torch.arange(4))
    asked = parts_read(teacher.denoiser, lambda: made.loss(batch, 0, 0, 1))
    assert asked == [None, None]


def test_sample_label_is_refused_for_unconditional_model(finished, inside):
    done = inside("triptych.cli.sample", f"ckpt={finished().path}", "label=3")
    refused_command(done, "label=3: this model was trained without labels")


def test_conditional_model_refuses_data_without_labels():
    config, data = {"model": {"conditional": True}}, SimpleNamespace(name="points", conditions={})
    words = "model.conditional=true: data points has no conditions"
    refused(lambda: data_facts(config, data), words)


def test_unknown_part_in_label_dropout_or_guidance_parts_is_refused(model):
    dropout = "model.label_dropout={text:0.1}"
    refused(
        lambda: model("model.conditional=true", dropout),
        "label_dropout.text: the network reads no such part of the condition; must be label",
    )
    made, data, config = model("model.conditional=true", "model.label_dropout={label:0.1}")
    wrong = config | {"guidance": CFG | {"parts": ["text"]}}
    refused(
        lambda: build_guided_denoiser(made, data, wrong, OtherRuns(config)),
        "guidance.parts: the condition has no part 'text'",
        "use label",
    )


@pytest.mark.parametrize(
    ("dropout", "parts", "gone"),
    [
        (0.0, None, "label, more"),
        ({"label": 0.5}, None, "more"),
        ({"label": 0.5}, ["more"], "more"),
        ({"label": 0.5}, ["label"], ""),
        (0.1, None, ""),
    ],
)
def test_guidance_requires_label_dropout_of_its_parts(dropout, parts, gone):
    """Without dropout, the null token is untrained; at scale 1 it is not used."""
    denoiser = nn.Module()
    denoiser.conditions = {"label": Labels(2), "more": Vectors(2), AUGMENTATION: Vectors(1)}
    denoiser.conditional, denoiser.process = True, None
    facts = {"conditions": denoiser.conditions, "conditional": True, "of_latents": False}
    made = SimpleNamespace(denoiser=denoiser, label_dropout=dropout, **facts)
    for scale in (0.0, 1.0, 2.0):
        config = {"guidance": CFG | {"scale": scale, "parts": parts}}
        wrap = lambda config=config: build_guided_denoiser(made, None, config, OtherRuns(config))  # noqa: E731
        if gone and scale != 1:
            refused(
                wrap,
                f"guidance=ClassifierFree: model was never trained without {gone}, as label_dropout=",
            )
        else:
            assert wrap().scale == scale


def test_classifier_guidance_refuses_model_without_label_dropout():
    """The guide calls the model without a label, at any scale."""
    denoiser = nn.Module()
    denoiser.conditions, denoiser.conditional = {"label": Labels(2)}, True
    denoiser.process = VariancePreserving()
    facts = {"conditions": denoiser.conditions, "of_latents": False, "label_dropout": 0.0}
    made = SimpleNamespace(denoiser=denoiser, conditional=True, **facts)
    data = SimpleNamespace(mixture=GaussianMixture([1.0], [[0.0]], [1.0]))
    node = {"_target_": "triptych.diffusion.guidance.Classifier", "classifier": "exact"}
    config = {"guidance": node | {"scale": 1.0}}
    words = "guidance=Classifier: model was never trained without label"
    refused(lambda: build_guided_denoiser(made, data, config, OtherRuns({})), words)
    made.conditional = False
    assert build_guided_denoiser(made, data, config, OtherRuns({})).scale == 1
    made.of_latents = True
    words = "guidance: Classifier does not support models of latents"
    refused(
        lambda: build_guided_denoiser(made, data, config, OtherRuns({})), words, "classifier_free"
    )


@pytest.mark.parametrize(("dropout", "said"), [(0.1, "label"), (0.0, "")])
def test_teacher_without_label_dropout_is_refused_if_student_has_it(model, dropout, said):
    """If the student's labels are dropped, the teacher answers without them, too."""
    student, data, _ = model("model.conditional=true", f"model.label_dropout={dropout}")
    teacher, *_ = model("model.conditional=true", "model.label_dropout=0.0")
    guides = SimpleNamespace(open=lambda *_: SimpleNamespace(model=teacher, data=data))
    if said:
        words = f"objective.teacher=x: model was never trained without {said}"
        refused(lambda: open_teacher("x", student, data, guides), words)
    else:
        assert open_teacher("x", student, data, guides) is teacher.denoiser


def test_static_threshold_keeps_samples_in_range(model):
    made, data, config = model("threshold=static")
    wrapped = build_guided_denoiser(made, data, config, OtherRuns(config))
    # All but the last bit of noise comes from an estimate within [-1, 1].
    assert Drawing(made, data, DDIM(3), wrapped).samples(4, seed=0).abs().max() < 1.1
    assert Drawing(made, data, DDIM(3)).samples(4, seed=0).abs().max() > 2


def test_sample_label_out_of_range_is_refused(finished, inside, root):
    run = finished("model.conditional=true", "test=false", "samples.n=0")
    command = ("triptych.cli.sample", f"ckpt={run.path}", "n=2", "sampler.steps=2", f"out={root}/x")
    for label in ("10", "cat"):
        refused_command(
            inside(*command, f"label={label}"), f"label={label}: must be a class from 0 to 9"
        )
        assert not (root / "x").exists()
    assert inside(*command, "label=9").returncode == 0 and (root / "x" / "samples.png").is_file()


# Which parts of the data's conditions a network reads.

SHAPES = "data=shapes denoiser=unet denoiser.network.widths=[8,8] denoiser.network.blocks=1".split()


@pytest.fixture(scope="module")
def data():
    found = Shapes(encoder=Words(), train_size=20, val_size=6, test_size=8)
    found.setup()
    return found


SORTED = torch.tensor([0] * 40 + [5] * 20)
TOLD = {
    "true": {"label", "text", "low"},
    "[text]": {"text"},
    "[text,low]": {"text", "low"},
    "false": set(),
}


@pytest.mark.parametrize(("said", "told"), TOLD.items())
def test_model_conditional_selects_conditions_of_network(prepared, data, said, told):
    model = build_model(prepared(*SHAPES, f"model.conditional={said}").config(), data)
    assert set(model.denoiser.network.conditions) == told
    condition = model.condition_of(data.splits["test"].batch(torch.arange(4)))
    assert set(condition.parts if condition else ()) == told


def test_samples_cycle_through_labels_or_held_out_captions(prepared, data):
    model = build_model(prepared(*SHAPES, "model.conditional=[label]").config(), data)
    drawing = Drawing(model, data, DDIM(3))
    assert drawing.condition(80).label.tolist() == [*range(72), *range(8)], (
        "pictures show each class"
    )
    assert drawing.condition(2, torch.tensor([7, 3])).label.tolist() == [7, 3]
    model.conditional = ["text"]
    tokens, held_out = (
        c.parts["text"].value for c in (drawing.condition(8), data.splits["val"].condition)
    )
    assert tokens.equal(torch.cat([held_out[:6], held_out[:2]])), "those of held-out items, in turn"


def test_measured_samples_use_labels_of_reference_sets():
    """Classes come in random order and equally often, even if a folder's items are sorted."""
    splits = {
        "val": Split(torch.zeros(0, 2)),
        "test": Split(torch.zeros(60, 2), Condition(label=SORTED)),
    }
    held = SimpleNamespace(splits=splits, conditions=["label"], shape=(2,), condition_split="test")
    drawing = Drawing(SimpleNamespace(conditional=["label"]), held, DDIM(3))
    for n in (30, 120):
        reference = SampleReference(held, n, 0, {})
        reference.held_out_features = lambda rows: rows
        measured = SimpleNamespace(config={"measures": {"n": n}}, reference=reference)
        sets = [choose_conditions(measured, drawing, repeat).labels for repeat in range(5)]
        assert all(
            torch.equal(one[:60], reference.held_out_set(i)[1]) for i, one in enumerate(sets)
        )
        assert all(len(one) == n and abs((one == 0).sum() / n - 2 / 3) < 0.2 for one in sets)
        assert not torch.equal(sets[0], sets[1])


@pytest.mark.parametrize("kinds", [1, 2])
def test_measured_samples_use_captions_of_whole_split(kinds):
    told = SimpleNamespace(
        splits={"val": torch.zeros(1000)}, condition_split="val", conditions=["text"]
    )
    drawing = Drawing(SimpleNamespace(conditional=["text"]), told, DDIM(3))
    of_classes = (
        None if kinds == 1 else SimpleNamespace(is_left_out_of_training=torch.arange(1000) >= 500)
    )
    for n, same in ((100, 100), (1000, 1000 // kinds), (1500, 1000 // kinds)):
        node = SimpleNamespace(
            config={"measures": {"n": n}}, reference=SimpleNamespace(prompts=of_classes)
        )
        items = (
            drawing.held_out_indices(n) if kinds == 1 else choose_conditions(node, drawing, 0).items
        )
        assert len(items) == n and len(items.unique()) == same
        assert abs(items[:100].float().mean() - 500 / kinds) < 120 / kinds or n > 100
        assert n < 1000 or items.equal(torch.arange(n) % (1000 // kinds)), "as they are"


def test_model_conditional_refuses_unknown_part(prepared, data):
    config = prepared(*SHAPES, "model.conditional=[txt]").config()
    refused(
        lambda: build_model(config, data),
        "model.conditional: the data have no condition 'txt'",
        "choose from label, text, low",
    )
