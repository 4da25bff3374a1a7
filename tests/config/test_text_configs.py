"""Configurations of text to image: they compose, set only keys that exist, and compare models of one size."""

import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from triptych.config.build import check_targets
from triptych.config.check import CONFIGS, check_keys
from triptych.config.names import register_resolvers
from triptych.data.build import build_data
from triptych.experiment.model import build_model

SMALL = ["data.train_size=20", "data.val_size=4", "data.test_size=4"]
ABLATIONS = ("cascade_stages", "cascade", "caption_bits")


def composed(*overrides):
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, *SMALL], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        check_keys(cfg, cfg.hydra)
        plain = OmegaConf.to_container(cfg, resolve=False)
        plain.pop("hydra")
        check_targets(plain)
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra")
        return OmegaConf.to_container(cfg, resolve=True)


def settings(ablation):
    text = OmegaConf.load(CONFIGS / "ablation" / f"{ablation}.yaml").hydra.sweeper
    assert text.params.setting.split(",") == list(text.settings)
    return {name: list(overrides) for name, overrides in text.settings.items()}


def parameters(config):
    model = build_model(config, build_data(config))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("experiment", ["imagen_base", "imagen_sr"])
def test_experiments_build(experiment):
    config = composed(f"experiment={experiment}")
    assert config["name"] == experiment and parameters(config) < 600_000


def test_stages_and_one_model_are_of_one_size_within_a_twentieth():
    stages = {
        name: parameters(composed("ablation=cascade_stages", *overrides))
        for name, overrides in settings("cascade_stages").items()
    }
    one = parameters(composed("ablation=cascade", *settings("cascade")["one"]))
    assert one == pytest.approx(stages["low"] + stages["high"], rel=0.05)
    said = re.search(r"# (\d+) and (\d+) thousand", (CONFIGS / "ablation" / "cascade.yaml").read_text())
    assert [int(n) for n in said.groups()] == [round(n / 1000) for n in (one, stages["low"] + stages["high"])]


def test_the_cascades_stages_are_the_runs_that_come_first():
    named = settings("cascade_stages")
    for name in ("two", "two_noised"):
        config = composed("ablation=cascade", *settings("cascade")[name], "seed=2")
        places = [place.split("/")[-3:] for place in config["model"]["stages"]]
        assert [p[:2] for p in places] == [["sweeps", "cascade_stages"]] * 2
        found = [re.fullmatch(r"setting=(\w+),seed=2", p[2])[1] for p in places]
        assert found[0] == "low" and found[1].startswith("high") and set(found) <= set(named)
        assert config["data"]["held_out"] == 0


def test_a_captions_bits_are_of_networks_that_differ_in_hearing_it():
    for overrides in settings("caption_bits").values():
        config = composed("ablation=caption_bits", *overrides)
        check_targets(config)
        assert config["data"]["held_out"] == 0 and config["model"]["label_dropout"] == 0
