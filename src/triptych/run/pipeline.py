"""A directory in diffusers' layout, a ``DDPMPipeline``'s, as the model of a run.

Its JSON files become a run's configuration; its weights are safetensors. It may be a stranger's: no file of
it is run or unpickled, and a class that it names is compared with ``CLASSES`` and never imported.
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
VARIANCES = {"fixed_small": "beta_tilde", "fixed_small_log": "beta_tilde", "fixed_large": "beta"}
CLASSES = {
    INDEX: ("DDPMPipeline", "DDIMPipeline"),
    SCHEDULER: ("DDPMScheduler", "DDIMScheduler"),
    UNET: ("UNet2DModel",),
}
FIXED: dict[str, dict[str, tuple[Any, ...]]] = {  # the values that other keys may have
    SCHEDULER: {
        "prediction_type": tuple(SPACES), "variance_type": tuple(VARIANCES), "clip_sample": (True, False),
        "rescale_betas_zero_snr": (False,), "thresholding": (False,),
    },
    UNET: {
        "time_embedding_type": ("positional",), "class_embed_type": (None,), "num_class_embeds": (None,),
    },
}  # fmt: skip
UNUSED = {  # of their own samplers, of a learned embedding, of early versions
    SCHEDULER: (
        "timestep_spacing", "steps_offset", "set_alpha_to_one", "dynamic_thresholding_ratio",
        "sample_max_value", "clip_sample_range",
    ),
    UNET: ("sample_size", "in_channels", "out_channels", "num_train_timesteps"),
}  # fmt: skip
OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def is_pipeline(path: str | Path) -> bool:
    """Whether a directory has the layout of a diffusers pipeline."""
    return (Path(path) / INDEX).is_file()


def pipeline_config(path: str) -> dict[str, Any]:
    """Make the groups of a configuration that the pipeline in ``path`` decides, ``bound`` without repeats.

    Raises:
        UserError: a file is missing or no JSON; something in it cannot be expressed; no safetensors.
    """
    for name, component in _read(path, INDEX).items():
        own = isinstance(component, list) and component[:1] == ["diffusers"]
        if name not in ("unet", "scheduler") or not own:
            raise _refused(path, INDEX, f"{name}={component}", "must be diffusers' unet and scheduler alone")
    their, unet = _read(path, SCHEDULER), _read(path, UNET)
    schedule = {"_target_": SCHEDULE} | _own(path, SCHEDULER, their, SCHEDULE)
    network = {"_target_": NETWORK} | _own(path, UNET, unet, NETWORK)
    if unet.get("in_channels", 3) != unet.get("out_channels", 3):
        raise _refused(path, UNET, f"out_channels={unet.get('out_channels')}", "must be in_channels")
    clip = their.get("clip_sample_range", 1.0) if their.get("clip_sample", True) else None
    output = {"_target_": OUTPUT, "space": SPACES[their.get("prediction_type", "epsilon")], "clip": clip}
    steps = schedule.get("num_train_timesteps", 1000)
    groups = {
        "schedule": schedule,
        "process": {"_target_": PROCESS},
        "denoiser": {"_target_": DENOISER, "network": network},
        "objective": {"output": output},
        "model": {"_target_": DIFFUSION, "conditional": False, "label_dropout": 0.0},
        "bound": {
            "steps": steps - 1 if isinstance(steps, int) else steps,
            "variance": VARIANCES[their.get("variance_type", "fixed_small")],
            "decoder": "posterior_gaussian",
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
    """Put its weights into the run's ``model``, and return them as a run's checkpoint has them.

    Raises:
        UserError: the network is of images of another shape; weights are damaged, or another network's.
    """
    shape, unet = tuple(model.shape), _read(path, UNET)
    size = unet.get("sample_size")
    theirs = (unet.get("in_channels", 3), *(size if isinstance(size, list) else [size] * 2))
    if shape[:1] != theirs[:1] or (size is not None and shape != theirs):
        raise _refused(path, UNET, f"in_channels={theirs[0]}, sample_size={size}", f"the data are {shape}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in _weight_files(path):
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise _refused(path, file.name, "damaged", "no safetensors; copy it again") from error
    state = {}
    for name, tensor in tensors.items():
        for before, after in OLD.items():
            name = name.replace(before, after)
        state[f"denoiser.network.model.{name}"] = tensor.float()
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"trained={path}: the weights of another network than {UNET} has ({line})") from error
    return {"state_dict": state, "callbacks": {}, "global_step": 0, "triptych": {"schema": SCHEMA}}


def _own(path: str, name: str, record: dict[str, Any], target: str) -> dict[str, Any]:
    """Those entries of a file that are arguments of ``target``; UserError for one of no meaning here."""
    known = of_class(target)[0].keys() - {"shape", "schedule", "outputs", "conditions", "spacing"}
    for key, value in record.items():
        allowed = FIXED[name].get(key)
        if key not in {*known, *FIXED[name], *UNUSED[name]}:
            raise _refused(path, name, f"{key}={value}", "unknown key")
        if allowed and value not in allowed:
            raise _refused(path, name, f"{key}={value}", f"must be {' or '.join(map(str, allowed))}")
    return {key: value for key, value in record.items() if key in known}


def _read(path: str, name: str) -> dict[str, Any]:
    """Return the entries of one file of JSON, without those of its class, which is one of ``CLASSES``."""
    try:
        record = read_json(Path(path) / name)
    except FileNotFoundError as error:
        raise UserError(f"trained={path}: no {name}; pass a directory that save_pretrained wrote") from error
    except (OSError, ValueError) as error:
        raise _refused(path, name, str(error)[:100], "not JSON") from error
    kind = record.get("_class_name") if isinstance(record, dict) else record
    if kind not in CLASSES[name]:
        raise _refused(path, name, f"_class_name={kind}", f"must be {' or '.join(CLASSES[name])}")
    return {key: value for key, value in record.items() if not key.startswith("_")}


def _weight_files(path: str) -> list[Path]:
    """Return the files of weights: one, or the shards of an index.

    Raises:
        UserError: there are none, or a shard is missing.
    """
    whole, index = Path(path) / WEIGHTS, Path(path) / f"{WEIGHTS}.index.json"
    names = [whole.name]
    if not whole.exists() and index.exists():
        try:
            names = sorted({str(file) for file in read_json(index)["weight_map"].values()})
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise _refused(path, index.name, "damaged", "no index of shards") from error
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise _refused(path, index.name, name, "not the name of a safetensors file")
        try:
            open_regular(whole.with_name(name)).close()
        except OSError as error:
            fix = "save it with safe_serialization=True; a .bin is a pickle and is not opened"
            raise UserError(f"trained={path}: no unet/{name}; {fix}") from error
    return [whole.with_name(name) for name in names]


def _refused(path: str, name: str, value: str, problem: str) -> UserError:
    return UserError(f"trained={path}: {name}: {value[:200]}: {problem}")
