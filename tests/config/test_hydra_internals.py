"""Hydra's private parts that this project uses are where they were, and do what they did."""

from hydra.core.override_parser.overrides_parser import OverridesParser

from triptych.config.hydra_internals import BasicSweeper, get_args_parser


def test_a_grid_is_split_into_jobs():
    overrides = OverridesParser.create().parse_overrides(["seed=1,2", "objective=x0"])
    batches = BasicSweeper.split_arguments(overrides, None)
    assert batches == [[["seed=1", "objective=x0"], ["seed=2", "objective=x0"]]]


def test_the_parser_tells_options_from_overrides():
    options = get_args_parser().parse_args(["--multirun", "seed=1"])
    assert options.multirun and options.overrides == ["seed=1"]
