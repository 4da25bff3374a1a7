"""``scale=paper``: the data, network and training of the paper, as far as a test can go."""

import functools
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from triptych.config.build import build
from triptych.config.check import CONFIGS
from triptych.config.compose import compose_command
from triptych.config.describe import read_yaml
from triptych.data.batch import Split
from triptych.data.cifar10 import Cifar10
from triptych.data.folder import ImageFolder
from triptych.diffusion.condition import Condition, Labels
from triptych.errors import UserError
from triptych.run.build import build_experiment
from triptych.run.request import resolve
from triptych.run.sweep_record import SweepRecord
from triptych.study.papers.paper import claim_entries, set_scale
from triptych.study.rounds import grid_jobs

# VDM's parameters, counted from the layers of the published code
_CONV, _NORM = 128 * 9 * 128 + 128, 256  # 3x3, 128 to 128 channels
_BLOCK = 2 * _NORM + 2 * _CONV + 512 * 128  # with a map of the conditioning without bias
_JOINED = (
    3 * _NORM + 128 * 9 * 256 + 128 + _CONV + 512 * 128 + 256 * 128 + 128
)  # of 256 channels to 128
VDM = (
    15 * 9 * 128 + 128 + 129 * 512 + 512 + 512 * 512 + 512
)  # z and Fourier n = 6, 7; log SNR and 128 sines
VDM += 34 * _BLOCK + 33 * _JOINED + _NORM + 4 * (128 * 128 + 128) + _NORM + 128 * 9 * 3 + 3


def ddpmpp(widths=(128, 256, 256, 256), blocks=4, attends=1, embedding=512):
    """Count DDPM++'s parameters from the layers of score_sde's models/ncsnpp.py and layerspp.py."""

    def dense(before, after, positions=1):
        return positions * before * after + after

    def block(before, after, resized=False):
        inner = 2 * before + dense(before, after, 9) + dense(embedding, after)
        short = dense(before, after) if before != after or resized else 0
        return inner + 2 * after + dense(after, after, 9) + short

    def attention(width):
        return 2 * width + 4 * dense(width, width)

    at, skips = widths[0], [widths[0]]
    total = dense(3, at, 9) + dense(at, embedding) + dense(embedding, embedding)
    for level, width in enumerate(widths):
        for _ in range(blocks):
            total += block(at, width) + (attention(width) if level == attends else 0)
            skips.append(at := width)
        if level < len(widths) - 1:
            total += block(at, at, True)
            skips.append(at)
    total += 2 * block(at, at) + attention(at)
    for level, width in reversed([*enumerate(widths)]):
        for _ in range(blocks + 1):
            total += block(at + skips.pop(), width)
            at = width
        total += (attention(at) if level == attends else 0) + (block(at, at, True) if level else 0)
    return total + 2 * at + dense(at, 3, 9)


# millions of parameters that the papers or their code give: Ho et al. 2020, Nichol & Dhariwal 2021,
# Dhariwal & Nichol 2021, Karras et al. 2022, Choi et al. 2022, Ma et al. 2024 (DiT-B of Peebles &
# Xie 2023),
# Li & He 2025, Karras et al. 2024 (table 2: EDM2-S)
PUBLISHED = {
    **dict.fromkeys(("ddim", "ddpm_rate", "ddpm_simple"), ("unet_ddpm", (3, 32, 32), 0, 35.7)),
    **dict.fromkeys(
        ("distillation_divergence", "distillation_outputs"), ("unet_iddpm", (3, 32, 32), 0, None)
    ),
    "dpm_solver": ("unet_iddpm", (3, 256, 256), 1000, 554.0),
    **dict.fromkeys(("guidance_scale", "kingma_gao_fid"), ("unet_iddpm", (3, 64, 64), 1000, 296.0)),
    "iddpm_hybrid": ("unet_iddpm", (3, 32, 32), 0, 52.5),
    "iddpm_importance": ("unet_iddpm", (3, 64, 64), 0, 120.0),
    "p2": ("unet_iddpm", (3, 256, 256), 0, 93.0),
    "sde_processes": ("unet_edm", (3, 32, 32), 0, ddpmpp() / 1e6),
    **dict.fromkeys(
        ("vdm_bits", "vdm_endpoints", "vdm_fourier", "vdm_learned_schedule", "vdm_training_steps"),
        ("unet_vdm", (3, 32, 32), 0, VDM / 1e6),
    ),
    "edm2_averaging": ("unet_edm2", (3, 64, 64), 1000, 280.2),
    "edm_training": ("unet_edm", (3, 32, 32), 0, 55.7),
    **dict.fromkeys(
        ("min_snr", "min_snr_cap", "sit_paths", "sit_samplers"), ("dit_b", (3, 32, 32), 1000, 130.0)
    ),
    "jit_spaces": ("jit_b", (3, 256, 256), 1000, 131.0),
}
REASONS = {
    "ddpm_fashion": "is DDPM's table 2 on other data; use paper=ddpm_simple scale=paper",
    "guidance_interval_trained": "is of latents of ImageNet 512, which this project has not",
}


@functools.cache
def asked(name: str, scale: str = "paper"):
    """Return the sweep's configuration at its scale, and the jobs of one seed."""
    cfg = compose_command("train", [f"paper={name}", f"scale={scale}"])
    OmegaConf.set_readonly(cfg.hydra, False)
    set_scale(cfg)
    return cfg, grid_jobs(cfg.hydra.sweeper, [f"scale={scale}", "seed=1"])


def plain(name: str, job: list[str]) -> dict:
    """Return the resolved configuration of a run."""
    cfg = compose_command("train", [f"paper={name}", *job])
    return resolve(cfg, Path()).config


def test_every_trained_paper_has_its_scale_or_a_reason():
    nodes = {f.stem: read_yaml(f) for f in (CONFIGS / "paper").glob("*.yaml")}
    trained = {
        name
        for name, node in nodes.items()
        if any(claim["kind"] == "trained" for claim in node["paper"]["claims"].values())
    }
    assert trained == PUBLISHED.keys() | REASONS.keys()


@pytest.mark.parametrize("name", REASONS)
def test_missing_paper_scale_is_refused_with_reason(name):
    cfg = compose_command("train", [f"paper={name}", "scale=paper"])
    with pytest.raises(UserError) as refused:
        set_scale(cfg)
    assert str(refused.value) == f"scale=paper: paper={name} {REASONS[name]}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_paper_scale_network_has_published_size(name):
    network, shape, classes, millions = PUBLISHED[name]
    cfg, jobs = asked(name)
    axes = claim_entries(cfg, jobs, SweepRecord(), False)["paper_axes"]
    own = read_yaml(CONFIGS / "paper" / f"{name}.yaml")["hydra"]["sweeper"]["params"]
    assert all(len(axes[key]) > 1 for key in axes.keys() - own.keys()), (
        "what all runs share is no axis"
    )
    config = plain(name, jobs[0])
    assert config["name"] == name and config["trainer"]["max_steps"] >= 200_000
    average = config["callbacks"]["ema"]
    assert average["half_life"] in (977, 6931, 12207) or average["sigma_rel"] in (0.02, 0.1, 0.25)
    assert f"denoiser={network}" in jobs[0] and config["trainer"]["accelerator"] == "auto"
    learned = config["bound"]["variance"] == "learned"
    given = {"label": Labels(classes)} if config["model"]["conditional"] else {}
    facts = {"shape": shape, "outputs": 1 + learned, "conditions": given, "spacing": 2 / 255}
    with torch.device("meta"):
        made = build(config["denoiser"]["network"], "denoiser.network", **facts)
    count = sum(p.numel() for p in made.parameters()) / 1e6
    assert millions is None or count == pytest.approx(millions, rel=0.02)


def test_all_settings_of_paper_scale_compose():
    """The shortest scale with settings is tried; the others have the grids of their small scale."""
    _, jobs = asked("edm_training")
    assert [plain("edm_training", job)["data"]["batch_size"] for job in jobs] == [512] * 6


def test_paper_scale_keeps_overrides_of_each_setting():
    """If a scale's value replaced a setting's, the setting's name would mean other runs."""
    _, jobs = asked("ddpm_simple")
    for job in jobs:
        setting = job[0].removeprefix("setting=")
        config = compose_command("train", ["paper=ddpm_simple"])
        assert {*config.hydra.sweeper.settings[setting]} <= {*job}


def test_paper_scale_null_removes_key_from_grid():
    cfg, jobs = asked("jit_spaces")
    assert not any(o.startswith("data.dim=") for o in jobs[0]) and len(jobs) == 9
    assert "train_size" not in plain("jit_spaces", jobs[0])["data"], "of the small scale alone"
    assert cfg.measures.over is None and cfg.measures.n == 50_000
    assert asked("ddpm_rate")[0].measures.n == 0, "as at the small scale"
    small = compose_command("train", ["paper=jit_spaces"])
    assert "data.dim" in small.hydra.sweeper.params


def test_jit_spaces_times_are_logit_normal():
    """In JiT's code logit t ~ N(-.8, .8^2); its t grows with the data, ours with the noise.

    The schedule cuts off the part above 2.75 deviations. Ends that rescale t would give .69 and
    .68.
    """
    _, jobs = asked("jit_spaces")
    config = plain("jit_spaces", jobs[0])
    schedule = build(config["schedule"], "schedule")
    times = build(config["objective"]["times"], "objective.times")
    t, _ = times((torch.arange(10_000) + 0.5) / 10_000, schedule)
    logit = schedule.gamma(t) / 2  # of the straight path: sigma / alpha = t / (1 - t)
    assert logit.mean().item() == pytest.approx(0.8, abs=0.02)
    assert logit.std().item() == pytest.approx(0.8, abs=0.02)
    assert config["objective"]["loss"]["over"] == config["objective"]["times"], (
        "so each draw weighs the same"
    )


@pytest.mark.parametrize(
    ("scale", "ends", "dropout"), [("small", {6.0}, {0.0}), ("paper", {10.07, 22.6}, {0.1, 0.3})]
)
def test_iddpm_hybrid_settings_match_paper_at_each_scale(scale, ends, dropout):
    """The settings of Nichol & Dhariwal 2021, section 3.3, and README.md of improved-diffusion.

    loss-second-moment is for L_vlb alone; clip_denoised=True is in image_sample.py; linear and
    cosine
    end elsewhere at T = 4000, and have dropout of .1 and .3.
    """
    made = [plain("iddpm_hybrid", job) for job in asked("iddpm_hybrid", scale)[1]]
    times = [one["objective"]["times"]["_target_"].rpartition(".")[2] for one in made]
    assert times == [*["Uniform"] * 4, "Importance"]
    assert [one["threshold"]["bound"] for one in made] == [1] * 5
    assert {one["schedule"]["gamma_max"] for one in made} == ends
    assert {one["denoiser"]["network"]["dropout"] for one in made} == dropout


def images(n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 3, size, size), generator=generator).byte(), torch.arange(n) % 10


@pytest.fixture
def synthetic(monkeypatch):
    """Make two random images per split, with the shape and the classes of a configuration."""

    def load(self):
        self.num_classes = 1000
        x, label = images(2, self.shape[1])
        return {part: Split(x, Condition(label=label), 256) for part in ("train", "val", "test")}

    monkeypatch.setattr("triptych.data.cifar10.check_cifar", lambda root: None)
    monkeypatch.setattr(Cifar10, "read", lambda self, train, download=False: images(2, 32))
    monkeypatch.setattr(ImageFolder, "load", load)


SMALL = (
    "trainer.max_steps=1 trainer.val_check_interval=1 trainer.accelerator=cpu "
    "trainer.precision=32-true "
    "threads=1 data.batch_size=2 lr_schedule.warmup_steps=0 measures.n=0 measures.classifier=null "
    "measures.inception=null samples.n=0 logger=csv"
).split()
SMALLER = {"dpm_solver": 64}  # pixels: of 256 a step takes 13 GiB and five minutes of two cores


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", PUBLISHED)
def test_paper_scale_model_takes_optimizer_step(name, synthetic):
    """The run's own model, loss and optimiser take a step on random images of the paper's shape."""
    _, jobs = asked(name)
    size = SMALLER.get(name, PUBLISHED[name][1][1])
    small = [*SMALL, f"data.size={size}"] if "data=folder" in jobs[0] else SMALL
    experiment = build_experiment(plain(name, [*jobs[0], *small]), download=False)
    model, batch = experiment.model.train(), next(iter(experiment.data.train_dataloader()))
    assert tuple(batch.x.shape) == (2, 3, size, size)
    optimizer = model.optimizer(model.parameter_groups())
    losses = []
    for _ in range(2):  # the same batch, times and noise
        loss = model.loss(batch, 0, 0, 1).mean() / model.dims
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses)) and losses[1] != losses[0]
