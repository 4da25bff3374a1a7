"""Objects from plain configuration: what is allowed, what is refused, in which words."""

import pytest

from triptych.config.build import build, check_targets
from triptych.config.keys import of_class
from triptych.errors import UserError


def refused(*words):
    return pytest.raises(UserError, match=".*".join(words))


def test_a_target_is_built_and_extras_are_handed_over_untouched():
    marker = object()
    made = build(
        {"_target_": "triptych.diffusion.bound.Bound", "steps": 3}, "bound", schedule=marker, decoder=None
    )
    assert made.schedule is marker and made.steps == 3


@pytest.mark.parametrize(
    "target", ["os.system", "subprocess.run", "builtins.eval", "torch.load", "triptychx.y"]
)
def test_targets_outside_the_house_are_refused(target):
    with refused(f"_target_={target}", "not a class"):
        build({"_target_": target}, "model")


def test_a_target_hidden_deep_in_a_checkpoints_config_is_found():
    with refused("os.system"):
        check_targets({"a": {"b": {"_target_": "os.system"}}})


def test_an_unknown_argument_is_refused_with_the_nearest():
    node = {"_target_": "triptych.diffusion.schedule.Linear", "gamma_min": -5.0, "gama_max": 5.0}
    with refused(r"schedule\.gama_max=5\.0", "did you mean gamma_max"):
        build(node, "schedule")


def test_a_refused_value_keeps_its_owners_words():
    with refused(r"sampler\.eta=2", r"\[0, 1\]"):
        build({"_target_": "triptych.diffusion.sampler.DDIM", "steps": 3, "eta": 2}, "sampler")


def test_arguments_of_parents_count():
    named, more = of_class("triptych.data.digits.Digits")
    assert {"batch_size", "val_size", "seed"} <= set(named) and not more
