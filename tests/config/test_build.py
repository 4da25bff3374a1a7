"""Objects from plain configuration: allowed and refused classes, and the messages."""

import pytest
import torch

from tests.refusal import refused
from triptych.config.build import Dependencies, build, check_targets
from triptych.config.check import CONFIGS
from triptych.config.compose import compose_command, unresolved_config
from triptych.config.keys import class_arguments
from triptych.diffusion.loss import Level
from triptych.diffusion.process import VariancePreserving


def test_build_passes_extra_arguments_unchanged():
    node, marker = {"_target_": "triptych.diffusion.bound.Bound", "steps": 3}, object()
    made = build(node, "bound", schedule=marker, decoder=None)
    assert made.schedule is marker and made.steps == 3


def test_loss_space_accepts_space_of_user_output(trusting):
    trusting("mylab", folder=CONFIGS.parent / "examples")
    squared = {"_target_": "triptych.diffusion.loss.Squared"}
    own = build({"_target_": "mylab.blend.Blend"}, "objective.output").space
    gamma = torch.linspace(-3.0, 3.0, 5)
    at = Level(VariancePreserving(), gamma, torch.ones(5), torch.linspace(0.0, 1.0, 5), own)
    expected = build(squared | {"space": None}, "objective.loss").weight(at)
    for space in ("mylab.blend.Blend", {"_target_": "mylab.blend.Blend", "share": 0.25}):
        loss = build(squared | {"space": space}, "objective.loss")
        assert torch.equal(loss.weight(at._replace(own="epsilon")), expected)
    for typed in ("mylab.blend.Blend", "{_target_:mylab.blend.Blend,share:0.5}"):
        config = unresolved_config(
            compose_command("train", ["objective/loss=x0", f"objective.loss.space={typed}"])
        )
        check_targets(config)
    assert build(config["objective"]["loss"], "objective.loss").space.name == "blend_0.5"
    words = "objective.loss.space='blend': must be null, x0, ", " or a class's dotted name"
    refused(
        lambda: compose_command("train", ["objective/loss=x0", "objective.loss.space=blend"]),
        *words,
    )


def test_check_targets_refuses_nested_unsafe_target():
    refused(lambda: check_targets({"a": {"b": {"_target_": "os.system"}}}), "os.system")
    refused(
        lambda: build({"_target_": "torch.load"}, "model"),
        "model._target_=torch.load",
        "class is not allowed",
    )


def test_unknown_argument_suggests_nearest_name():
    node = {"_target_": "triptych.diffusion.schedule.Linear", "gamma_min": -5.0, "gama_max": 5.0}
    refused(lambda: build(node, "schedule"), "schedule.gama_max=5.0", "did you mean gamma_max")


def test_value_error_of_class_is_reported_with_config_key():
    node = {"_target_": "triptych.diffusion.sampler.DDIM", "steps": 3, "eta": 2}
    refused(lambda: build(node, "sampler"), "sampler.eta=2", "[0, 1]")


def test_class_arguments_include_inherited_ones():
    named, more = class_arguments("triptych.data.digits.Digits")
    assert {"batch_size", "val_size", "seed"} <= set(named) and not more


HIDDEN = """
from triptych.networks.base import *
if True:
    class Hidden(Network):
        def forward(self, z, gamma, condition=None): ...
class Wide(Network):
    def __init__(self, width=3, **more):
        super().__init__(**more)
        self.width = width
    def forward(self, z, gamma, condition=None): ...
"""


@pytest.mark.parametrize("name", ["Hidden", "Wide"])
def test_build_passes_dependencies_to_class_with_hidden_arguments(trusting, name):
    trusting("hidden", HIDDEN)
    table = Dependencies({}, {"shape": (2,), "outputs": 3})
    made = build({"_target_": f"hidden.{name}"}, "denoiser.network", table)
    assert (made.shape, made.outputs) == ((2,), 3)


EXPERIMENTS = [
    f"experiment={file.stem}" for file in sorted((CONFIGS / "experiment").glob("*.yaml"))
]
ABLATIONS = "samplers guidance langevin processes dalle2 text_guidance".split()
GUIDANCE = ["guidance=classifier", "guidance=auto", "guidance=classifier_free", "threshold=dynamic"]


@pytest.mark.parametrize(
    "choice", [*EXPERIMENTS, *(f"ablation={name}" for name in ABLATIONS), *GUIDANCE]
)
def test_shipped_config_composes_with_valid_targets(choice):
    check_targets(unresolved_config(compose_command("train", [choice])))
