"""Hydra's private modules that this project uses still exist, and still work the same way."""

from hydra.core.override_parser.overrides_parser import OverridesParser

from triptych.config.hydra_internals import BasicSweeper


def test_a_grid_is_split_into_jobs():
    overrides = OverridesParser.create().parse_overrides(["seed=1,2", "objective=x0"])
    batches = BasicSweeper.split_arguments(overrides, None)
    assert batches == [[["seed=1", "objective=x0"], ["seed=2", "objective=x0"]]]
