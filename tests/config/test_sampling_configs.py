"""Every ablation and experiment of the score perspective composes, and sets only keys that exist."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from triptych.config.build import check_targets
from triptych.config.check import CONFIGS, check_keys
from triptych.config.names import register_resolvers

ABLATIONS = ("samplers", "guidance", "langevin", "processes", "dalle2", "text_guidance")
EXPERIMENTS = ("digits_classifier", "digits_noisy_classifier", "digits_conditional", "ncsn",
               "fashion_classifier", "fashion_conditional", "shapes_classifier", "dalle2_contrastive",
               "dalle2_prior", "dalle2_decoder", "dalle2")  # fmt: skip
SAMPLE = ("guidance=classifier", "guidance=auto", "guidance=classifier_free", "threshold=dynamic")


@pytest.mark.parametrize(
    "choice", [*(f"ablation={a}" for a in ABLATIONS), *(f"experiment={e}" for e in EXPERIMENTS), *SAMPLE]
)
def test_it_composes(choice):
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=[choice], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        check_keys(cfg, cfg.hydra)
        plain = OmegaConf.to_container(cfg)
    plain.pop("hydra")
    check_targets(plain)
