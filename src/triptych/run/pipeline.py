"""Use a ``DDPMPipeline`` directory in diffusers' layout as the model of a run.

Its JSON files become a run's configuration; its weights are safetensors. It may be a stranger's: no file of
it is run or unpickled, and a class that it names is compared with ``VALUES`` and never imported.
"""

import re
from pathlib import Path
from typing import Any

from triptych.config.archive import SCHEMA
from triptych.config.keys import check_values, of_class
from triptych.errors import UserError
from triptych.files import open_regular, read_json

INDEX, SCHEDULER, UNET = "model_index.json", "scheduler/scheduler_config.json", "unet/config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
NETWORK, SCHEDULE = "triptych.networks.unet2d.UNet2D", "triptych.diffusion.betas.Betas"
PROCESS, DIFFUSION = "triptych.diffusion.process.VariancePreserving", "triptych.models.diffusion.Diffusion"
DENOISER, OUTPUT = "triptych.diffusion.denoiser.Denoiser", "triptych.diffusion.denoiser.Output"
SPACES = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}  # of prediction_type
VARIANCES = {"fixed_small": "beta_tilde", "fixed_large": "beta", "fixed_small_log": "beta_tilde"}
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
VALUES: dict[str, dict[str, tuple[Any, ...]]] = {  # of keys that ours do not stand for; (): any
    INDEX: {
        "_class_name": ("DDPMPipeline", "DDIMPipeline"), "unet": (["diffusers", "UNet2DModel"],),
        "scheduler": tuple(["diffusers", name] for name in SCHEDULERS),
    },
    SCHEDULER: {
        "_class_name": SCHEDULERS,
        "prediction_type": tuple(SPACES), "variance_type": tuple(VARIANCES), "clip_sample": (True, False),
        "clip_sample_range": (), "rescale_betas_zero_snr": (False,), "thresholding": (False,),
        **dict.fromkeys(("timestep_spacing", "steps_offset", "set_alpha_to_one"), ()),  # of their samplers
        **dict.fromkeys(("dynamic_thresholding_ratio", "sample_max_value"), ()),
    },
    UNET: {
        "_class_name": ("UNet2DModel",),
        "time_embedding_type": ("positional",), "class_embed_type": (None,), "num_class_embeds": (None,),
        **dict.fromkeys(("sample_size", "in_channels", "out_channels", "num_train_timesteps"), ()),
    },
}  # fmt: skip
WIDEST, HEADER = 8, 1 << 24  # bytes of a number, and before the numbers, at most
OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def is_pipeline(path: str | Path) -> bool:
    """Return whether a directory has the layout of a diffusers pipeline."""
    return (Path(path) / INDEX).is_file()


def pipeline_config(path: str) -> dict[str, Any]:
    """Return the config groups that the pipeline in ``path`` determines, ``bound`` without repeats.

    Raises:
        UserError: a file is missing or no JSON; something in it cannot be expressed; no safetensors.
    """
    _read(path, INDEX)
    theirs, unet = _read(path, SCHEDULER, SCHEDULE), _read(path, UNET, NETWORK)
    own = {key: value for key, value in theirs.items() if key not in VALUES[SCHEDULER]}
    network = {key: value for key, value in unet.items() if key not in VALUES[UNET]}
    clip = theirs.get("clip_sample_range", 1.0) if theirs.get("clip_sample", True) else None
    space, steps = SPACES[theirs.get("prediction_type", "epsilon")], own.get("num_train_timesteps", 1000)
    groups = {
        "schedule": {"_target_": SCHEDULE} | own,
        "process": {"_target_": PROCESS},
        "denoiser": {"_target_": DENOISER, "network": {"_target_": NETWORK} | network},
        "objective": {"output": {"_target_": OUTPUT, "space": space, "clip": clip}},
        "model": {"_target_": DIFFUSION, "conditional": False, "label_dropout": 0.0},
        "bound": {
            "steps": steps - 1 if isinstance(steps, int) else steps,
            "variance": VARIANCES[theirs.get("variance_type", "fixed_small")],
            "decoder": "discretised_gaussian",
        },
        "weights": "raw",
        "checkpoint": "last",
    }
    try:
        check_values(groups)
    except UserError as error:
        raise UserError(f"trained={path}: {error}") from error
    _weight_files(path)
    return groups


def read_pipeline(path: str, model: Any) -> dict[str, Any]:
    """Load the pipeline's weights into ``model``, and return them in a checkpoint's form.

    Raises:
        UserError: the network is of images of another shape; weights are damaged, or another network's.
    """
    shape, unet = tuple(model.shape), _read(path, UNET, NETWORK)
    size = unet.get("sample_size")
    theirs = (unet.get("in_channels", 3), *(size if isinstance(size, list) else [size] * 2))
    if shape[:1] != theirs[:1] or (size is not None and shape != theirs):
        raise _refused(path, UNET, f"in_channels={theirs[0]}, sample_size={size}: the data are {shape}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    most = WIDEST * sum(p.numel() for p in model.parameters()) + HEADER
    try:
        for file in _weight_files(path):
            if file.stat().st_size > most:
                raise _refused(path, file.name, f"larger than the network of {UNET} can be")
            for name, tensor in load_file(file).items():
                for before, after in OLD.items():
                    name = name.replace(before, after)
                state[f"denoiser.network.model.{name}"] = tensor.float()
        model.load_state_dict(state)
    except (SafetensorError, OSError) as error:
        raise _refused(path, file.name, "damaged; copy it again") from error
    except (RuntimeError, TypeError, AttributeError) as error:
        line = " ".join(str(error).split())[:200]
        raise _refused(path, WEIGHTS, f"of another network than {UNET} ({line})") from error
    return {"state_dict": state, "callbacks": {}, "global_step": 0, "triptych": {"schema": SCHEMA}}


def _read(path: str, name: str, target: str = "") -> dict[str, Any]:
    """Read a JSON file: arguments of ``target`` and keys of ``VALUES``; UserError for others."""
    try:
        record = read_json(Path(path) / name)
    except FileNotFoundError as error:
        raise UserError(f"trained={path}: no {name}; pass a directory that save_pretrained wrote") from error
    except (OSError, ValueError) as error:
        raise _refused(path, name, f"not JSON ({error})") from error
    entries: dict[str, Any] = {"_class_name": None} | (record if isinstance(record, dict) else {})
    handed = {"shape", "schedule", "outputs", "conditions", "spacing"}
    known = of_class(target)[0].keys() - handed if target else set()
    for key, value in entries.items():
        if key not in {*known, *VALUES[name]} and not key.startswith("_"):
            raise _refused(path, name, f"{key}={value}: unknown key")
        if (allowed := VALUES[name].get(key)) and value not in allowed:
            raise _refused(path, name, f"{key}={value}: must be {' or '.join(map(str, allowed))}")
    return {key: value for key, value in entries.items() if not key.startswith("_")}


def _weight_files(path: str) -> list[Path]:
    """Return the weight files: one, or the shards of an index; UserError if one is missing."""
    whole, index = Path(path) / WEIGHTS, Path(path) / f"{WEIGHTS}.index.json"
    names = [whole.name]
    if not whole.exists() and index.exists():
        try:
            names = sorted({str(file) for file in read_json(index)["weight_map"].values()})
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise _refused(path, index.name, "no index of shards") from error
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise _refused(path, index.name, f"{name}: not the name of a safetensors file")
        try:
            open_regular(whole.with_name(name)).close()
        except OSError as error:
            fix = "save it with safe_serialization=True; a .bin is a pickle and is not opened"
            raise UserError(f"trained={path}: no unet/{name}; {fix}") from error
    return [whole.with_name(name) for name in names]


def _refused(path: str, name: str, problem: str) -> UserError:
    return UserError(f"trained={path}: {name}: {problem[:300]}")
