"""``scale=paper`` against the published code: value by value, with the file and line of each.

A value is in this project's terms; the functions below translate the code's. Lines are those of the
named commit. ``PAPER`` marks what no code says, with the section that does.
"""

import math

import pytest
import yaml

from triptych.cli.arguments import read_command_line

from .test_paper_scale import PUBLISHED, asked, plain

COMMITS = {
    "ddim": "ermongroup/ddim e8df66cf",
    "ddpm": "hojonathanho/diffusion 1e0dceb3",
    "distillation": "google-research/google-research 4de87d63 diffusion_distillation",
    "dpm": "LuChengTHU/dpm-solver 52bc3fbc",
    "edm": "NVlabs/edm 008a4e53",
    "edm2": "NVlabs/edm2 4bf8162f",
    "guided": "openai/guided-diffusion 22e0df81",
    "improved": "openai/improved-diffusion 1bc7bbbd",
    "jit": "a copy of LTH14/JiT in Duarte-leao/JiT 0d3a86d7",
    "min_snr": "TiankaiHang/Min-SNR-Diffusion-Training 5189997d",
    "p2": "jychoi118/P2-weighting 3da0947a",
    "sde": "yang-song/score_sde_pytorch cb1f359f",
    "sit": "willisma/SiT 947f95bd",
    "vdm": "google-research/vdm dc27b98a",
    "PAPER": "the paper's text",
}


def half_life(decay: float) -> float:
    """Return the steps after which an average with this decay has forgotten a half."""
    return math.log(0.5) / math.log(decay)


def gamma_of_bar(alpha_bar: float) -> float:
    return math.log1p(-alpha_bar) - math.log(alpha_bar)


def linear_betas(steps: int) -> tuple[float, float]:
    """Return gamma of the first and last of DDPM's betas, scaled by 1000 / steps as in iDDPM."""
    first, last = (1000 / steps * end for end in (0.0001, 0.02))
    betas = [first + (last - first) * i / (steps - 1) for i in range(steps)]
    bar = math.exp(sum(math.log1p(-beta) for beta in betas))
    return gamma_of_bar(1 - first), gamma_of_bar(bar)


def cosine_betas(steps: int) -> tuple[float, float]:
    """Return gamma of the first and last of iDDPM's cosine betas, at most .999."""

    def bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [max(0.001, bar((i + 1) / steps) / bar(i / steps)) for i in range(steps)]
    return gamma_of_bar(ratios[0]), gamma_of_bar(math.prod(ratios))


def vp_gamma(t: float) -> float:
    """Return gamma at t of the variance-preserving path with beta from .1 to 20."""
    return math.log(math.expm1(0.5 * 19.9 * t**2 + 0.1 * t))


def sigma_gamma(sigma: float) -> float:
    return 2 * math.log(sigma)


def images(millions: float, batch: int) -> float:
    """Return the optimiser's steps in which so many images are seen."""
    return millions * 1e6 / batch


AVERAGE, FLIP = "callbacks.ema.half_life", "augmentation.flip.p"
MIN, MAX, WARMUP = "schedule.gamma_min", "schedule.gamma_max", "lr_schedule.warmup_steps"
LR, DECAY, BATCH = "optimizer.lr", "optimizer.weight_decay", "data.batch_size"
BETAS, DROPOUT = "optimizer.betas", "denoiser.network.dropout"
TF32 = "trainer.tf32"
STEPS, CLIP, WIDTHS = "trainer.max_steps", "trainer.gradient_clip_val", "denoiser.network.widths"

DDPM = [
    (BATCH, 128, "ddpm scripts/run_cifar.py:134"),
    (CLIP, 1.0, "ddpm scripts/run_cifar.py:134"),
    (LR, 2e-4, "ddpm scripts/run_cifar.py:134"),
    (WARMUP, 5000, "ddpm scripts/run_cifar.py:134"),
    ("objective.steps", 1000, "ddpm scripts/run_cifar.py:135"),
    (MIN, linear_betas(1000)[0], "ddpm scripts/run_cifar.py:135"),
    (MAX, linear_betas(1000)[1], "ddpm scripts/run_cifar.py:135"),
    (DROPOUT, 0.1, "ddpm scripts/run_cifar.py:137"),
    (FLIP, 0.5, "ddpm scripts/run_cifar.py:137"),
    (AVERAGE, half_life(0.9999), "ddpm diffusion_tf/tpu_utils/tpu_utils.py:103"),
    (STEPS, 800_000, "PAPER appendix B"),
]
DISTILLATION = [
    (FLIP, 0.5, "distillation config/cifar_base.py:37"),
    (WIDTHS, [256, 256, 256], "distillation config/cifar_base.py:47"),
    (DROPOUT, 0.2, "distillation config/cifar_base.py:52"),
    ("sampler.variance", "beta", "distillation config/cifar_base.py:57"),
    ("sampler.steps", 1024, "distillation config/cifar_base.py:62"),
    (MIN, -20.0, "distillation config/cifar_base.py:64"),
    (MAX, 20.0, "distillation config/cifar_base.py:64"),
    (BATCH, 128, "distillation config/cifar_base.py:71"),
    (LR, 2e-4, "distillation config/cifar_base.py:73"),
    (WARMUP, 1000, "distillation config/cifar_base.py:74"),
    (DECAY, 0.001, "distillation config/cifar_base.py:75"),
    (AVERAGE, half_life(0.9999), "distillation config/cifar_base.py:76"),
    (CLIP, 1.0, "distillation config/cifar_base.py:77"),
]
VDM = [
    (MIN, -13.3, "vdm configs/cifar10.py:45"),
    (MAX, 5.0, "vdm configs/cifar10.py:46"),
    (DROPOUT, 0.1, "vdm configs/cifar10.py:52"),
    (WARMUP, 100, "vdm configs/cifar10.py:58"),
    (STEPS, 10_000_000, "vdm configs/cifar10.py:59"),
    (BATCH, 128, "vdm configs/cifar10.py:61"),
    (BETAS, [0.9, 0.99], "vdm configs/cifar10.py:72"),
    (DECAY, 0.01, "vdm configs/cifar10.py:75"),
    (LR, 2e-4, "vdm configs/cifar10.py:77"),
    (AVERAGE, half_life(0.9999), "vdm configs/cifar10.py:79"),
]
SIT = [
    (TF32, True, "sit train.py:9"),
    (AVERAGE, half_life(0.9999), "sit train.py:40"),
    (LR, 1e-4, "sit train.py:181"),
    (DECAY, 0.0, "sit train.py:181"),
    (FLIP, 0.5, "sit train.py:186"),
    (BATCH, 256, "sit train.py:325"),
    (MIN, vp_gamma(1e-5), "sit transport/__init__.py:45"),
    (MAX, vp_gamma(1.0), "sit transport/path.py:142"),
    ("sampler.epsilon", 1e-3, "sit transport/__init__.py:46"),
    (STEPS, 400_000, "PAPER section 3"),
]
EDM = [
    (TF32, False, "edm training/training_loop.py:55"),
    ("lr_schedule.warmup_steps", images(10, 512), "edm training/training_loop.py:39"),
    (STEPS, images(200, 512), "edm train.py:51"),
    (BATCH, 512, "edm train.py:52"),
    (LR, 1e-3, "edm train.py:56"),
    (AVERAGE, images(0.5, 512), "edm train.py:57"),
    (DROPOUT, 0.13, "edm train.py:58"),
    (BETAS, [0.9, 0.999], "edm train.py:101"),
    (FLIP, 0.5, "edm train.py:145"),
    ("sampler.steps", 18, "edm generate.py:27"),
    ("sampler.rho", 7, "edm generate.py:27"),
]
SAMPLED = [
    ("sampler.sigma_min", 0.002, "edm generate.py:27"),
    ("sampler.sigma_max", 80, "edm generate.py:27"),
]
VP_NOISE = [
    (MIN, vp_gamma(1e-5), "edm training/loss.py:21"),
    (MAX, vp_gamma(1.0), "edm training/loss.py:21"),
    *SAMPLED,
]
VE_NOISE = [
    (MIN, sigma_gamma(0.02), "edm training/loss.py:47"),
    (MAX, sigma_gamma(100), "edm training/loss.py:47"),
    *SAMPLED,
]
EDM_NOISE = [
    (MIN, sigma_gamma(0.002), "edm generate.py:27"),
    (MAX, sigma_gamma(80), "edm generate.py:27"),
    ("objective.times.mean", -1.2, "edm training/loss.py:67"),
    ("objective.times.std", 1.2, "edm training/loss.py:67"),
    ("objective.output.sigma_data", 0.5, "edm training/loss.py:67"),
]
MIN_SNR_FILE = (
    "min_snr configs/in256/vit-b_layer12_lr1e-4_099_099_pred_x0__min_snr_5__fp16_bs8x32.sh"
)
MIN_SNR = [
    ("objective.steps", 1000, f"{MIN_SNR_FILE}:22"),
    (MIN, cosine_betas(1000)[0], f"{MIN_SNR_FILE}:23"),
    (MAX, cosine_betas(1000)[1], f"{MIN_SNR_FILE}:23"),
    (LR, 1e-4, f"{MIN_SNR_FILE}:24"),
    (BETAS, [0.99, 0.99], f"{MIN_SNR_FILE}:24"),
    (DECAY, 0.03, f"{MIN_SNR_FILE}:25"),
    (WARMUP, 0, f"{MIN_SNR_FILE}:27"),
    ("model.label_dropout", 0.15, f"{MIN_SNR_FILE}:29"),
    ("sampler.steps", 50, "min_snr configs/in256/inference.sh:18"),
]
IDDPM = [
    (LR, 1e-4, "improved README.md:97"),
    (BATCH, 128, "improved README.md:97"),
    ("objective.steps", 4000, "improved README.md:96"),
    (DECAY, 0.0, "improved scripts/image_train.py:65"),
    (AVERAGE, half_life(0.9999), "improved scripts/image_train.py:69"),
]
COSINE_4000 = [
    (MIN, cosine_betas(4000)[0], "improved improved_diffusion/gaussian_diffusion.py:39"),
    (MAX, cosine_betas(4000)[1], "improved improved_diffusion/gaussian_diffusion.py:61"),
]
LINEAR_4000 = [
    (MIN, linear_betas(4000)[0], "improved improved_diffusion/gaussian_diffusion.py:31"),
    (MAX, linear_betas(4000)[1], "improved improved_diffusion/gaussian_diffusion.py:32"),
]

# {paper, or paper/setting: [(key, value, source)]}
OFFICIAL = {
    "ddim": [
        *DDPM,
        ("sampler.grid", "quadratic", "ddim runners/diffusion.py:346"),
        ("sampler.share", 0.8, "ddim runners/diffusion.py:349"),
    ],
    "ddpm_rate": DDPM,
    "ddpm_simple": DDPM,
    "distillation_divergence": DISTILLATION,
    "distillation_outputs": DISTILLATION,
    "dpm_solver": [
        ("guidance.scale", 8.0, "dpm examples/ddpm_and_guided-diffusion/sample.sh:41"),
        ("sampler.grid", "time", "dpm examples/ddpm_and_guided-diffusion/sample.sh:45"),
        (
            WIDTHS,
            [256, 256, 512, 512, 1024, 1024],
            "dpm examples/ddpm_and_guided-diffusion/configs/imagenet256_guided.yml:23",
        ),
        (
            "denoiser.network.blocks",
            2,
            "dpm examples/ddpm_and_guided-diffusion/configs/imagenet256_guided.yml:20",
        ),
        (
            "denoiser.network.attention_at",
            [32, 16, 8],
            "dpm examples/ddpm_and_guided-diffusion/configs/imagenet256_guided.yml:21",
        ),
        (DROPOUT, 0.0, "dpm examples/ddpm_and_guided-diffusion/configs/imagenet256_guided.yml:22"),
        (
            "denoiser.network.head_width",
            64,
            "dpm examples/ddpm_and_guided-diffusion/configs/imagenet256_guided.yml:30",
        ),
        (
            MIN,
            linear_betas(1000)[0],
            "dpm examples/ddpm_and_guided-diffusion/configs/imagenet256_guided.yml:56",
        ),
        (
            MAX,
            linear_betas(1000)[1],
            "dpm examples/ddpm_and_guided-diffusion/configs/imagenet256_guided.yml:57",
        ),
        (
            "objective.steps",
            1000,
            "dpm examples/ddpm_and_guided-diffusion/configs/imagenet256_guided.yml:58",
        ),
    ],
    "edm2_averaging": [
        (TF32, False, "edm2 training/training_loop.py:87"),
        (STEPS, (1024 << 20) / 2048, "edm2 train_edm2.py:34"),
        (BATCH, 2048, "edm2 train_edm2.py:34"),
        (LR, 0.01, "edm2 train_edm2.py:34"),
        ("lr_schedule.reference_steps", 35_000, "edm2 train_edm2.py:34"),
        ("objective.times.mean", -0.8, "edm2 train_edm2.py:34"),
        ("objective.times.std", 1.6, "edm2 train_edm2.py:34"),
        (WARMUP, images(10, 2048), "edm2 training/training_loop.py:47"),
        (BETAS, [0.9, 0.99], "edm2 training/training_loop.py:64"),
    ],
    "edm_training/vp": [*EDM, *VP_NOISE],
    "edm_training/ve": [*EDM, *VE_NOISE],
    "edm_training/vp_preconditioned": [*EDM, *VP_NOISE],
    "edm_training/ve_preconditioned": [*EDM, *VE_NOISE],
    "edm_training/edm": [*EDM, *EDM_NOISE],
    "edm_training/augmented": [
        *EDM,
        *EDM_NOISE,
        ("augmentation.flip.told", True, "edm training/augment.py:166"),
        ("augmentation.crop.p", 0.12, "edm train.py:59"),
    ],
    "guidance_scale": [
        (DROPOUT, 0.1, "guided README.md:49"),
        (WIDTHS, [192, 384, 576, 768], "guided README.md:49"),
        ("denoiser.network.attention_at", [32, 16, 8], "guided README.md:49"),
        ("denoiser.network.head_width", 64, "guided README.md:49"),
        ("denoiser.network.blocks", 3, "guided README.md:49"),
        (LR, 3e-4, "improved README.md:105"),
        (BATCH, 2048, "improved README.md:105"),
        (AVERAGE, half_life(0.9999), "guided scripts/image_train.py:69"),
        (MIN, -20.0, "PAPER section 4"),
        (MAX, 20.0, "PAPER section 4"),
        ("sampler.variance", 0.3, "PAPER section 4"),
        (STEPS, 400_000, "PAPER section 4"),
    ],
    "iddpm_hybrid/linear": [*IDDPM, *LINEAR_4000],
    "iddpm_hybrid/hybrid": [*IDDPM, *COSINE_4000, (DROPOUT, 0.3, "improved README.md:95")],
    "iddpm_hybrid/vlb": [*IDDPM, *COSINE_4000, (DROPOUT, 0.3, "improved README.md:143")],
    "iddpm_importance": [*IDDPM, *COSINE_4000],
    "jit_spaces": [
        ("objective.times.mean", 0.8, "jit main_jit.py:53"),
        ("objective.times.std", 0.8, "jit main_jit.py:54"),
        ("sampler.epsilon", 0.05, "jit main_jit.py:56"),
        ("model.label_dropout", 0.1, "jit main_jit.py:57"),
        (AVERAGE, half_life(0.9999), "jit main_jit.py:49"),
        (LR, 5e-5 * 1024 / 256, "jit main_jit.py:38"),
        (DECAY, 0.0, "jit main_jit.py:46"),
        (WARMUP, 5 * (1_281_167 // 1024), "jit main_jit.py:31"),
        (BETAS, [0.9, 0.95], "jit main_jit.py:216"),
        ("sampler.steps", 50, "jit main_jit.py:74"),
        (BATCH, 1024, "PAPER appendix A"),
        (MIN, -12.0, "PAPER figure 2: t has no ends"),
        (MAX, 12.0, "PAPER figure 2: t has no ends"),
    ],
    "kingma_gao_fid": [
        (TF32, False, "edm training/training_loop.py:55"),
        (MIN, sigma_gamma(0.002), "edm generate.py:27"),
        (MAX, sigma_gamma(80), "edm generate.py:27"),
        (LR, 1e-4, "edm README.md:212"),
        (BATCH, 4096, "edm README.md:212"),
        (STEPS, images(2500, 4096), "edm README.md:212"),
        (AVERAGE, images(50, 4096), "edm README.md:212"),
        (WARMUP, images(10, 4096), "edm training/training_loop.py:39"),
        ("sampler.steps", 256, "edm README.md:100"),
        ("sampler.churn", 40, "edm README.md:100"),
        ("sampler.low", 0.05, "edm README.md:100"),
        ("sampler.high", 50, "edm README.md:100"),
        ("sampler.noise", 1.003, "edm README.md:100"),
    ],
    "min_snr": [*MIN_SNR, (STEPS, 200_000, "PAPER table 1")],
    "min_snr_cap": [*MIN_SNR, (STEPS, 1_000_000, "PAPER table 2")],
    "p2": [
        (DROPOUT, 0.0, "p2 README.md:47"),
        (WIDTHS, [128, 128, 256, 256, 512, 512], "p2 README.md:47"),
        ("denoiser.network.blocks", 1, "p2 README.md:47"),
        ("denoiser.network.attention_at", [16], "p2 README.md:47"),
        (LR, 2e-5, "p2 README.md:47"),
        (BATCH, 8, "p2 README.md:47"),
        ("objective.steps", 1000, "p2 README.md:47"),
        (MIN, linear_betas(1000)[0], "p2 README.md:47"),
        (MAX, linear_betas(1000)[1], "p2 README.md:47"),
    ],
    "sde_processes": [
        (BATCH, 128, "sde configs/default_cifar10_configs.py:9"),
        (STEPS, 1_300_000, "sde configs/default_cifar10_configs.py:10"),
        (FLIP, 0.5, "sde configs/default_cifar10_configs.py:44"),
        ("schedule.beta_min", 0.1, "sde configs/default_cifar10_configs.py:54"),
        ("schedule.beta_max", 20.0, "sde configs/default_cifar10_configs.py:55"),
        (DROPOUT, 0.1, "sde configs/default_cifar10_configs.py:56"),
        (DECAY, 0.0, "sde configs/default_cifar10_configs.py:61"),
        (LR, 2e-4, "sde configs/default_cifar10_configs.py:63"),
        (WARMUP, 5000, "sde configs/default_cifar10_configs.py:66"),
        (CLIP, 1.0, "sde configs/default_cifar10_configs.py:67"),
        (AVERAGE, half_life(0.9999), "sde configs/vp/cifar10_ddpmpp_continuous.py:44"),
        (WIDTHS, [128, 256, 256, 256], "sde configs/vp/cifar10_ddpmpp_continuous.py:48"),
        ("denoiser.network.blocks", 4, "sde configs/vp/cifar10_ddpmpp_continuous.py:49"),
    ],
    "sit_paths": SIT,
    "sit_samplers": SIT,
    **dict.fromkeys(
        (
            "vdm_bits",
            "vdm_endpoints/learned",
            "vdm_fourier",
            "vdm_learned_schedule",
            "vdm_training_steps",
        ),
        VDM,
    ),
}
# {key that no sampler here has: how samples are drawn instead}
DIFFERENCES = {
    "sampler.share": "DDIM's last level is .8 T; here it is T, as in the paper's appendix D.2",
    "sampler.sigma_min": "EDM draws from 80 to .002 where the network knows them; here to the",
    "sampler.sigma_max": "schedule's ends, on which the network was trained",
    "sampler.epsilon": "SiT ends at 1e-3, and JiT divides by at least .05; here to the schedule's end",
}


def value_at(config: dict, path: str):
    node = config
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            return None
        node = node[name]
    return node


@pytest.mark.parametrize("recipe", OFFICIAL)
def test_recipe_has_values_of_published_code(recipe):
    paper, _, setting = recipe.partition("/")
    jobs = [job for job in asked(paper)[1] if not setting or f"setting={setting}" in job]
    config = plain(paper, jobs[0])
    differing = {}
    for key, expected, source in OFFICIAL[recipe]:
        found = value_at(config, key)
        assert source.split()[0] in COMMITS
        # Ends of the noise and numbers of steps are rounded in the files.
        if isinstance(expected, float):
            expected = pytest.approx(expected, rel=0.002, abs=0.01 * (key in (MIN, MAX)))
        if found != expected:
            differing[key] = (found, expected, source)
    assert differing.keys() <= DIFFERENCES.keys(), differing


def test_every_listed_difference_is_one():
    compared = {key for rows in OFFICIAL.values() for key, _, _ in rows}
    assert compared >= DIFFERENCES.keys()


def test_every_paper_scale_is_compared():
    assert {recipe.partition("/")[0] for recipe in OFFICIAL} == {*PUBLISHED}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["paper=ddim"], {"sampler.grid": "quadratic", BATCH: 128}),
        (["paper=edm_training", "setting=ve"], {MIN: -7.82, FLIP: 0.5, BATCH: 512}),
    ],
)
def test_cfg_job_shows_recipe(arguments, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        read_command_line([*arguments, "scale=paper", "--cfg", "job"], "train")
    assert not ended.value.code
    config = yaml.safe_load(capsys.readouterr().out)
    assert {key: value_at(config, key) for key in expected} == expected
