"""Configurations of text to image compose, set existing keys, and compare models of one size."""

import re

import pytest
from omegaconf import OmegaConf

from triptych.config.check import CONFIGS
from triptych.config.compose import compose_command, to_plain, without_hydra
from triptych.config.identity import slug
from triptych.data.build import build_data
from triptych.run.model import build_model

SMALL = ["data.train_size=20", "data.val_size=4", "data.test_size=4"]


def composed(*overrides):
    return to_plain(without_hydra(compose_command("train", [*overrides, *SMALL])))


def settings(ablation):
    text = OmegaConf.load(CONFIGS / "ablation" / f"{ablation}.yaml").hydra.sweeper
    assert text.params.setting.split(",") == list(text.settings)
    return {name: list(overrides) for name, overrides in text.settings.items()}


def parameters(config):
    model = build_model(config, build_data(config))
    return sum(p.numel() for p in model.parameters())


STAGES = ("cascade_low", "cascade_high", "cascade_high_noised")


@pytest.mark.parametrize("experiment", ["imagen_base", "imagen_sr", *STAGES])
def test_text_experiment_builds_with_fewer_than_600_000_parameters(experiment):
    config = composed(f"experiment={experiment}")
    assert config["name"] == experiment and parameters(config) < 600_000


def test_cascade_and_single_model_sizes_agree_within_5_percent():
    stages = {name: parameters(composed(f"experiment={name}")) for name in STAGES[:2]}
    one = parameters(composed("ablation=cascade", *settings("cascade")["one"]))
    assert one == pytest.approx(sum(stages.values()), rel=0.05)
    said = re.search(
        r"# (\d+) and (\d+) thousand", (CONFIGS / "ablation" / "cascade.yaml").read_text()
    )
    assert [int(n) for n in said.groups()] == [round(n / 1000) for n in (one, sum(stages.values()))]


def test_cascade_ablation_stages_are_cascade_stages_runs():
    """A cell's directory is named after its overrides, as by ``override_dirname`` and ``slug``."""
    params = OmegaConf.load(CONFIGS / "ablation" / "cascade_stages.yaml").hydra.sweeper.params
    assert params.experiment.split(",") == [*STAGES] and list(params) == ["seed", "experiment"]
    for name, high in (("two", "cascade_high"), ("two_noised", "cascade_high_noised")):
        config = composed("ablation=cascade", *settings("cascade")[name], "seed=2")
        names = [slug(f"experiment={stage},seed=2") for stage in ("cascade_low", high)]
        sweep = f"{config['paths']['log_dir']}/sweeps/{composed('ablation=cascade_stages')['name']}"
        assert config["model"]["stages"] == [f"{sweep}/{one}" for one in names]
        assert config["data"]["held_out"] == 0


def test_cascade_stages_cell_matches_its_experiment():
    for stage in STAGES:
        cell = composed("ablation=cascade_stages", f"experiment={stage}")
        alone = composed(f"experiment={stage}")
        for key in ("data", "denoiser", "model", "augmentation", "objective", "bound"):
            assert cell.get(key) == alone.get(key), key
        assert cell["name"] == "cascade_stages"


def test_caption_bits_settings_have_equal_model_sizes():
    sizes = []
    for overrides in settings("caption_bits").values():
        config = composed("ablation=caption_bits", *overrides)
        sizes.append(parameters(config))
        assert config["data"]["held_out"] == 0
        assert (config["model"]["label_dropout"] > 0) == bool(config["metrics"])
    said = re.search(
        r"# (\d+) and (\d+) thousand", (CONFIGS / "ablation" / "caption_bits.yaml").read_text()
    )
    assert [int(n) for n in said.groups()] == [round(n / 1000) for n in sizes[:2]] and sizes[
        2
    ] == sizes[1]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
