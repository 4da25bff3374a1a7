"""Import and export of models of diffusers, in the directory of a ``DDPMPipeline``.

Their bound is computed here, and diffusers loads our runs.
"""

import functools
import json
import pickle
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import ModelCard
from scipy.stats import norm

from tests.refusal import refused, refused_command
from triptych.diffusion import sampler as samplers
from triptych.diffusion.sampler import DDIM
from triptych.errors import UserError
from triptych.run.execute import execute
from triptych.run.pipeline import check_expressible, pipeline_config
from triptych.run.reopen import reopen
from triptych.run.result import result_line
from triptych.run.untrusted import OWN

T = 10
INDEX, UNET = "model_index.json", "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SIZES = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
SIZES["down_block_types"] = ("DownBlock2D", "AttnDownBlock2D")
SIZES["up_block_types"] = ("AttnUpBlock2D", "UpBlock2D")


@functools.cache
def unet_of(size: int) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(sample_size=size, in_channels=1, out_channels=1, **SIZES)


def save(path: Path, size: int = 8, **scheduler) -> Path:
    """Save a random pipeline in ``path``."""
    unet = unet_of(size)
    options = {"num_train_timesteps": T, "beta_end": 0.6} | scheduler
    DDPMPipeline(unet, DDPMScheduler(**options)).save_pretrained(path)
    return path


def ddpm_bound(
    pipeline: DDPMPipeline, x: torch.Tensor, levels: int, eps: torch.Tensor
) -> np.ndarray:
    """Return L_T + ... + L_0 of Ho et al. 2020 (eqs. 5 to 8, 13), nats an item.

    One draw a term: eps (T, B, ...).
    The model's mean is what ``DDPMScheduler.step`` gives without noise, its variance
    ``_get_variance``'s; of L_0 it is beta tilde_2, as in their code.
    """
    scheduler, unet = pipeline.scheduler, pipeline.unet.eval()
    scheduler.set_timesteps(T)
    kept = scheduler.alphas_cumprod.double().numpy()
    beta = 1 - kept / np.concatenate([[1.0], kept[:-1]])
    truth, nats = x.double().numpy(), np.zeros(len(x))
    nats += 0.5 * (kept[-1] * truth**2 - kept[-1] - np.log(1 - kept[-1])).sum((1, 2, 3))  # L_T
    noise_of = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    silent = mock.patch(noise_of, lambda shape, **_: torch.zeros(shape))
    for t in range(T):
        noise = eps[t].double().numpy()
        z = torch.tensor(np.sqrt(kept[t]) * truth + np.sqrt(1 - kept[t]) * noise).float()
        with torch.no_grad(), silent:
            output = unet(z, t).sample
            mean = scheduler.step(output, t, z).prev_sample.double().numpy()
        if t == 0:
            std = np.sqrt(beta[1] * (1 - kept[0]) / (1 - kept[1]))
            upper = np.where(truth > 1 - 1e-6, np.inf, truth + 1 / (levels - 1))
            lower = np.where(truth < -1 + 1e-6, -np.inf, truth - 1 / (levels - 1))
            side = np.where(truth > mean, -1.0, 1.0)  # of the tail in which a float has digits
            a, b = side * (lower - mean) / std, side * (upper - mean) / std
            high, low = norm.logcdf(np.maximum(a, b)), norm.logcdf(np.minimum(a, b))
            nats -= (high + np.log1p(-np.exp(low - high))).sum((1, 2, 3))
            continue
        tilde = beta[t] * (1 - kept[t - 1]) / (1 - kept[t])
        right = np.sqrt(kept[t - 1]) * beta[t] / (1 - kept[t]) * truth
        right += np.sqrt(1 - beta[t]) * (1 - kept[t - 1]) / (1 - kept[t]) * z.double().numpy()
        variance = float(scheduler._get_variance(t))
        each = np.log(variance / tilde) - 1 + (tilde + (mean - right) ** 2) / variance
        nats += 0.5 * each.sum((1, 2, 3))
    return nats


COSINE = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_large"}
KINDS = [
    ("epsilon", "epsilon", {}),
    ("v_prediction", "v", {"clip_sample": False, **COSINE}),
    ("sample", "x0", {"clip_sample": False}),
]


@pytest.mark.parametrize(("predicts", "objective", "options"), KINDS)
def test_diffusers_pipeline_bound_and_images_match_ddpm(
    predicts, objective, options, root, prepared
):
    """Bounds are equal term by term with equal noise, and in a run's result within both errors."""
    path = save(root / "theirs", prediction_type=predicts, **options)
    result = execute(run := prepared(f"trained='{path}'", "data=digits", "samples.n=0"))
    opened = reopen(str(run.path))
    bound, denoiser = opened.model.bound, opened.model.denoiser
    assert bound.steps == T - 1 and opened.config["weights"] == "raw"
    pipeline, x = (
        DDPMPipeline.from_pretrained(path),
        opened.data.splits["test"].batch(torch.arange(297)).x,
    )
    generator = torch.Generator().manual_seed(3)
    eps = [torch.randn(T, *x.shape, generator=generator) for _ in range(3)]
    theirs = np.stack([ddpm_bound(pipeline, x, opened.data.levels, one) for one in eps])
    with torch.no_grad():
        prior, reconstruction = bound.ends(denoiser, x, eps[0][0])
        times = [torch.full((297,), (t - 0.5) / (T - 1)) for t in range(1, T)]
        steps = [
            bound.diffusion(denoiser, x, *one, None).nats
            for one in zip(times, eps[0][1:], strict=True)
        ]
    ours = (prior + reconstruction + torch.stack(steps).mean(0)).double().numpy()
    np.testing.assert_allclose(ours, theirs[0], rtol=1e-4)

    figure, bits = result["test"]["bpd"], theirs / (64 * np.log(2))
    error = np.hypot(figure["draw_stderr"], bits.mean(1).std(ddof=1) / 3**0.5)
    assert abs(figure["mean"] - bits.mean()) <= 4 * error + 1e-5 * bits.mean()
    parts = [
        result["test"][f"bpd_{part}"]["mean"] for part in ("prior", "reconstruction", "diffusion")
    ]
    assert sum(parts) == pytest.approx(figure["mean"]) and figure["n"] == 297
    assert result["choices"]["objective"] == objective
    if "clip_sample" in options:
        same_images(DDIMPipeline.from_pretrained(path), run.path, 5)


def same_images(pipeline: DDIMPipeline, run: Path, steps: int) -> None:
    """Compare pixels of ``pipeline`` and of the run, sampled by DDIM from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.register_to_config(timestep_spacing="trailing")
    theirs = pipeline(
        batch_size=3,
        generator=torch.Generator().manual_seed(5),
        num_inference_steps=steps,
        output_type="np",
    ).images
    model = reopen(str(run)).model
    ours = model.sample(3, DDIM(steps, grid="time"), torch.Generator().manual_seed(5))
    pixels = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.ptp(pixels) > 0.1 and np.abs(pixels - theirs).max() <= 1e-4


FIRST = {
    "tensor_format": "pt",
    "timestep_values": None,
    "skip_prk_steps": True,
}  # keys of the first pipelines


def flatten(path: Path, predict_epsilon: bool = True) -> Path:
    """Change a directory to the layout of the first pipelines, with the keys of that time.

    Example: google/ddpm-cifar10-32.
    """
    for name in (SCHEDULER, UNET, WEIGHTS):
        shutil.move(path / name, path / Path(name).name)
    for folder in ("scheduler", "unet"):
        shutil.rmtree(path / folder)
    file = path / Path(SCHEDULER).name
    record = json.loads(file.read_text()) | FIRST | {"predict_epsilon": predict_epsilon}
    file.write_text(json.dumps({k: v for k, v in record.items() if k != "prediction_type"}))
    return path


def test_flat_pipeline_directory_equals_nested_one(root):
    """diffusers loads it in the same way.

    ``predict_epsilon`` is the key before 0.9; diffusers 0.42 does not read it any more.
    """
    nested = {
        kind: pipeline_config(str(save(root / kind, prediction_type=kind)))
        for kind in ("epsilon", "sample")
    }
    for kind, config in nested.items():
        path = flatten(root / kind, predict_epsilon=kind == "epsilon")
        assert pipeline_config(str(path)) == config
        theirs = DDPMPipeline.from_pretrained(path)
        assert (
            theirs.unet.config.sample_size == 8 and theirs.scheduler.config.num_train_timesteps == T
        )
    theirs.save_pretrained(root / "again")  # which keeps the keys
    assert FIRST.items() <= json.loads((root / "again" / SCHEDULER).read_text()).items()
    assert pipeline_config(str(root / "again")) == nested["sample"]
    change("scheduler_config.json", cunning=1)(path)
    refused(
        lambda: pipeline_config(str(path)),
        f"trained={path}: scheduler_config.json: cunning=1: unknown key",
    )


def test_flat_pipeline_with_old_weight_names_samples(root, prepared):
    """Attention has the names of diffusers before 0.13; all samplers give finite images."""
    from safetensors.torch import load_file, save_file

    path = save(root / "theirs", clip_sample=False)
    theirs = DDIMPipeline.from_pretrained(path)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(path / WEIGHTS)
    for new, before in old.items():
        tensors = {name.replace(new, before): tensor for name, tensor in tensors.items()}
    save_file(tensors, path / WEIGHTS)
    execute(run := prepared(f"trained='{flatten(path)}'", "samples.n=0", "bound.repeats=1"))
    for steps in (5, 10):
        same_images(theirs, run.path, steps)
    model = reopen(str(run.path)).model
    for kind in "Ancestral Heun DPMSolver EDM PredictorCorrector AnnealedLangevin Langevin".split():
        options = {"size": 1e-4} if kind == "Langevin" else {"grid": "time"}
        sampler = getattr(samplers, kind)(4, **options)
        assert model.sample(2, sampler, torch.Generator().manual_seed(0)).isfinite().all()


TRAINED = (
    "denoiser=unet2d schedule=betas schedule.num_train_timesteps=10 schedule.beta_end=0.6 "
    "objective=v "
    "samples.n=0 denoiser.network.block_out_channels=[8,8] denoiser.network.norm_num_groups=4 "
    "bound.steps=9 "
    "bound.variance=beta bound.decoder=discretised_gaussian optimizer.lr=0.01"
).split()


def test_diffusers_export_round_trip_keeps_bound_and_images(root, prepared, inside):
    """Ours to diffusers and back: the bound is equal to 1e-6, images as diffusers' own to 1e-4."""
    result = execute(run := prepared(*TRAINED))
    done = inside("triptych.cli.export", str(run.path), "to=diffusers", "out", "license=mit")
    assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in (root / "out").iterdir())
    assert files == ["README.md", "model_index.json", "scheduler", "unet"]
    assert not [p for p in (root / "out").rglob("*") if p.suffix in (".bin", ".py", ".ckpt")]
    again = execute(prepared(f"trained='{root / 'out'}'", "samples.n=0", path="again"))
    for key, entry in result["test"].items():
        assert again["test"][key]["mean"] == pytest.approx(entry["mean"], rel=1e-6, abs=1e-6), key
    continuous = ["bound.steps=null", "bound.variance=beta_tilde", "bound.decoder=categorical"]
    bound = prepared(f"trained='{root / 'out'}'", *continuous, path="other").config()["bound"]
    assert (bound["steps"], bound["variance"], bound["decoder"]) == (
        None,
        "beta_tilde",
        "categorical",
    )
    for steps in (5, 10):
        same_images(DDIMPipeline.from_pretrained(root / "out"), run.path, steps)
    assert (
        DDPMPipeline.from_pretrained(root / "out").scheduler.config.variance_type == "fixed_large"
    )

    card = ModelCard.load(root / "out" / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "diffusers"
    [figure] = card.data.eval_results
    mean = result["test"]["bpd"]["mean"]
    assert figure.metric_value == mean and figure.metric_type == "bpd"
    assert (
        result_line(result) in card.text and "`objective=v`" in card.text and "digits" in card.text
    )
    done = inside("triptych.cli.export", str(run.path), "to=diffusers", "out")
    assert done.stderr == "error: DIR=out: is not empty; choose a new directory\n"


@pytest.mark.parametrize(
    "typed, line",
    [
        ("objective=score", "objective.output.space=score ... must be epsilon or v or x0"),
        (
            "process=rectified bound.decoder=categorical",
            "process._target_=triptych.diffusion.process.Rect",
        ),
        ("bound.variance=optimal", "bound.variance=optimal ... must be beta_tilde or beta"),
        (
            "denoiser=resnet schedule=linear",
            "denoiser.network._target_=triptych.networks.resnet.ResNet",
        ),
    ],
)
def test_export_refuses_run_without_diffusers_equivalent(typed, line, prepared, monkeypatch):
    run = prepared(*([] if "resnet" in typed else TRAINED), *typed.split())
    monkeypatch.setattr(type(run), "summary", lambda self: SimpleNamespace(status="finished"))
    refused(
        lambda: check_expressible(run), f"{run.path}: ", "cannot be expressed", *line.split(" ... ")
    )


def change(name: str, **entries):
    def edit(path: Path) -> None:
        record = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(record | entries))

    return edit


def only_a_pickle(path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (subprocess.run, (["touch", str(path / "ran")],))

    (path / WEIGHTS).unlink()
    (path / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


BAD = {
    "no scheduler": (
        lambda p: shutil.rmtree(p / "scheduler"),
        "no scheduler/scheduler_config.json; pass a",
    ),
    "no unet": (lambda p: (p / UNET).unlink(), "no unet/config.json; pass a directory"),
    "not JSON": (lambda p: (p / UNET).write_text("{"), f"{UNET}: not JSON"),
    "a list": (
        lambda p: (p / UNET).write_text("[1]"),
        f"{UNET}: _class_name=None: must be UNet2DModel",
    ),
    "pipeline class": (
        change(INDEX, _class_name="Mine"),
        "_class_name=Mine: must be DDPMPipeline or",
    ),
    "latent": (change(INDEX, vae=["diffusers", "VQModel"]), "vae=.*: unknown key"),
    "code": (
        change(INDEX, unet=["mine", "UNet"]),
        r"unet=.*: must be \['diffusers', 'UNet2DModel'\]",
    ),
    "learned": (
        change(SCHEDULER, variance_type="learned"),
        "variance_type=learned: must be fixed_small",
    ),
    "betas": (
        change(SCHEDULER, beta_schedule="laplace"),
        "beta_schedule='laplace': must be linear, ",
    ),
    "beta": (
        change(SCHEDULER, beta_end=float("nan")),
        "beta_end=nan: must be a number above 0, below 1",
    ),
    "last step": (
        change(SCHEDULER, set_alpha_to_one=False),
        "set_alpha_to_one=False: must be True",
    ),
    "timesteps": (
        change(SCHEDULER, timestep_values=[9, 1]),
        r"timestep_values=\[9, 1\]: must be None",
    ),
    "unknown key": (change(SCHEDULER, cunning=1), f"{SCHEDULER}: cunning=1: unknown key"),
    "unet key": (change(UNET, hook="os.system"), f"{UNET}: hook=os.system: unknown key"),
    "classes": (change(UNET, num_class_embeds=10), "num_class_embeds=10: must be None"),
    "block": (
        change(UNET, down_block_types=["CrossAttnDownBlock2D"] * 2),
        "down_block_types=.*: must be a list",
    ),
    "escape": (change(UNET, act_fn="\x1b[2J"), r"act_fn='\\\\x1b\[2J': must be silu, "),
    "pickle": (only_a_pickle, "no unet/diffusion_pytorch_model.safetensors; .* a .bin is a pickle"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_pipeline_is_refused_in_one_line(case, root):
    spoil, line = BAD[case]
    spoil(path := save(root / "theirs"))
    with pytest.raises(UserError, match=line) as caught:
        pipeline_config(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not (path / "ran").exists()


def claim_much(path: Path) -> None:
    """Write a sparse file whose header claims a tensor of 60 GB."""
    size = 15_000_000_000
    tensor = {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}
    header = json.dumps({"conv_in.weight": tensor}).encode()
    with open(path / WEIGHTS, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * size)


DEEP = {"block_out_channels": [8] * 5}
DEEP |= {"down_block_types": ["DownBlock2D"] * 5, "up_block_types": ["UpBlock2D"] * 5}
WRONG = {
    "size": (
        lambda p: shutil.rmtree(p) or save(p, size=16),
        "in_channels=1, sample_size=16: the data have shape ",
    ),
    "channels": (
        change(UNET, in_channels=3, out_channels=3),
        r"in_channels=3, sample_size=8: the data ",
    ),
    "widths": (
        change(UNET, block_out_channels=[8, 16]),
        "not the weights of unet/config.json",
    ),
    "damaged": (
        lambda p: (p / WEIGHTS).write_bytes(b"PK\x03\x04" * 9),
        "safetensors: damaged; copy it",
    ),
    "bomb": (claim_much, "larger than the network of unet/config.json can be"),
    "resolutions": (
        change(UNET, **DEEP),
        "8x8 images cannot be halved 4 times",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_pipeline_that_does_not_fit_data_leaves_no_directory(case, root, prepared, monkeypatch):
    spoil, line = WRONG[case]
    spoil(path := save(root / "theirs"))
    run = prepared(f"trained='{path}'", path="x")
    monkeypatch.setenv(OWN, str(run.path))
    with pytest.raises(UserError, match=line) as caught:
        execute(run)
    assert "\n" not in str(caught.value) and not run.path.exists()


def test_pipeline_directory_code_does_not_run(root, prepared, inside, capsys):
    path = save(root / "theirs")
    for name in ("pipeline.py", "unet/unet.py", "scheduler/__init__.py", "sitecustomize.py"):
        (path / name).write_text(f"open({str(path / 'ran')!r}, 'w')\n")
    execute(prepared(f"trained='{path}'", "samples.n=0", "bound.repeats=1"))
    assert not (path / "ran").exists()
    assert "unknown training data" in capsys.readouterr().err
    other = r"^objective=x0: not allowed, as trained=.*; change only keys of data, bound, "
    with pytest.raises(UserError, match=other):
        prepared(f"trained='{path}'", "objective=x0", path="x")
    shutil.move(path / WEIGHTS, root / "elsewhere")
    (path / WEIGHTS).symlink_to(root / "elsewhere")
    refused(
        lambda: prepared(f"trained='{path}'", path="x"),
        "symbolic link to a place outside the run's directory",
    )
    assert not (root / "logs" / "runs" / "x").exists()
    for command in ("evaluate", "sample"):
        done = inside(f"triptych.cli.{command}", f"ckpt={path}")
        refused_command(done, f"ckpt={path}: no such file")
