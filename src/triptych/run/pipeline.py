"""Read and write models as diffusers pipelines (the directory layout of ``DDPMPipeline``).

The directory may be untrusted: only weights in safetensors are read, no file is executed or
unpickled, and class names in its JSON are compared with ``VALUES`` but never imported. Pipelines of
early diffusers versions have all files in the top folder, and some other keys.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from triptych.config.identity import flatten_config
from triptych.config.keys import check_values, class_arguments
from triptych.errors import UserError
from triptych.files import open_regular, read_json
from triptych.records import Checkpoint, Config, Entries
from triptych.run.directory import SCHEMA, RunDirectory
from triptych.run.parsing import error_line
from triptych.run.result import Result, result_line
from triptych.terminal import escape_control_characters

INDEX, SCHEDULER, UNET = "model_index.json", "scheduler/scheduler_config.json", "unet/config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
NETWORK, SCHEDULE = "triptych.networks.unet2d.UNet2D", "triptych.diffusion.betas.Betas"
PROCESS, DIFFUSION = (
    "triptych.diffusion.process.VariancePreserving",
    "triptych.models.diffusion.Diffusion",
)
DENOISER, OUTPUT = "triptych.diffusion.denoiser.Denoiser", "triptych.diffusion.denoiser.Output"
# {prediction_type of diffusers: our ``objective.output.space``}
SPACES = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
VARIANCES = {"fixed_small": "beta_tilde", "fixed_large": "beta", "fixed_small_log": "beta_tilde"}
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
# {file: {key without counterpart in our configuration: allowed values}}; () allows any value.
VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    INDEX: {
        "_class_name": ("DDPMPipeline", "DDIMPipeline"), "unet": (["diffusers", "UNet2DModel"],),
        "scheduler": tuple(["diffusers", name] for name in SCHEDULERS),
    },
    SCHEDULER: {
        "_class_name": SCHEDULERS,
        "prediction_type": tuple(SPACES), "variance_type": tuple(VARIANCES), "clip_sample": (True, False),
        "clip_sample_range": (), "rescale_betas_zero_snr": (False,), "thresholding": (False,),
        "set_alpha_to_one": (True,), "predict_epsilon": (True, False), "timestep_values": (None,),
        # These keys only affect diffusers' own samplers.
        **dict.fromkeys(("timestep_spacing", "steps_offset", "skip_prk_steps"), ()),
        **dict.fromkeys(("dynamic_thresholding_ratio", "sample_max_value", "tensor_format"), ()),
    },
    UNET: {
        "_class_name": ("UNet2DModel",),
        "time_embedding_type": ("positional",), "class_embed_type": (None,), "num_class_embeds": (None,),
        **dict.fromkeys(("sample_size", "in_channels", "out_channels", "num_train_timesteps"), ()),
    },
}  # fmt: skip
# Arguments that the builder injects, so no file may contain them.
INJECTED = {"shape", "schedule", "outputs", "conditions", "spacing"}
MAX_NUMBER_BYTES, MAX_HEADER_BYTES = 8, 1 << 24  # of a safetensors file
# Parameter names of attention layers before diffusers 0.13, which published weights still have.
OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
TYPES = {space: name for name, space in SPACES.items()}
VARIANCE_TYPES = {"beta_tilde": "fixed_small", "beta": "fixed_large"}
# {our key: values that a diffusers pipeline can express}
EXPRESSIBLE = {
    "model._target_": [DIFFUSION],
    "denoiser._target_": [DENOISER],
    "denoiser.network._target_": [NETWORK],
    "schedule._target_": [SCHEDULE],
    "process._target_": [PROCESS],
    "objective.output._target_": [OUTPUT],
    "objective.output.space": [*TYPES],
    "bound.variance": [*VARIANCE_TYPES],
}
MODEL_CARD = """# {name}

A diffusion model of {data}, trained and measured with Triptych.

    from diffusers import DDIMPipeline
    images = DDIMPipeline.from_pretrained("DIR")(batch_size=4, num_inference_steps=50).images

## Bound

{bound}. It is an upper bound of the negative log-likelihood. To measure it again: `triptych-train trained=DIR data=...`.

## Settings

{settings}
"""


def is_pipeline(path: str | Path) -> bool:
    """Return whether a directory has the layout of a diffusers pipeline."""
    return (Path(path) / INDEX).is_file()


def pipeline_config(path: str) -> Config:
    """Return the configuration of a pipeline: the config groups that it determines.

    The group ``bound`` lacks ``repeats``.
    """
    _read_component_config(path, INDEX)
    scheduler, unet = (
        _read_component_config(path, SCHEDULER, SCHEDULE),
        _read_component_config(path, UNET, NETWORK),
    )
    schedule = {key: value for key, value in scheduler.items() if key not in VALUES[SCHEDULER]}
    network = {key: value for key, value in unet.items() if key not in VALUES[UNET]}
    clip = None
    if scheduler.get("clip_sample", True):
        clip = scheduler.get("clip_sample_range", 1.0)
    steps = schedule.get("num_train_timesteps", 1000)
    if isinstance(steps, int):  # check_values below refuses other types.
        steps -= 1
    groups = {
        "schedule": {"_target_": SCHEDULE} | schedule,
        "process": {"_target_": PROCESS},
        "denoiser": {"_target_": DENOISER, "network": {"_target_": NETWORK} | network},
        "objective": {
            "output": {
                "_target_": OUTPUT,
                "space": SPACES[_prediction_type(scheduler)],
                "clip": clip,
            }
        },
        "model": {"_target_": DIFFUSION, "conditional": False, "label_dropout": 0.0},
        "bound": {
            "steps": steps,
            "variance": VARIANCES[scheduler.get("variance_type", "fixed_small")],
            "decoder": "discretised_gaussian",
        },
        "weights": "raw",
        "checkpoint": "last",
    }
    try:
        check_values(groups)
    except UserError as error:
        raise UserError(f"trained={path}: {error}") from error
    _read_weights(path)
    return groups


def read_pipeline(path: str, model: Any) -> Checkpoint:
    """Load a pipeline's weights into ``model``, and return a checkpoint of this model.

    Raises UserError if the weights do not match the model.
    """
    _check_shape(path, tuple(model.shape))
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = _read_weights(path)
    most = MAX_NUMBER_BYTES * sum(p.numel() for p in model.parameters()) + MAX_HEADER_BYTES
    if file.stat().st_size > most:
        raise _component_error(path, file.name, f"larger than the network of {UNET} can be")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise _component_error(path, file.name, "damaged; copy it again") from error
    state = {_triptych_name(name): tensor.float() for name, tensor in tensors.items()}
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise _component_error(
            path, WEIGHTS, f"not the weights of {UNET} ({error_line(error)})"
        ) from error
    return {"state_dict": state, "callbacks": {}, "global_step": 0, "triptych": {"schema": SCHEMA}}


def _check_shape(path: str, shape: tuple[int, ...]) -> None:
    """Raise UserError unless a pipeline's images have the data's shape (C, H, W)."""
    unet = _read_component_config(path, UNET, NETWORK)
    channels, size = unet.get("in_channels", 3), unet.get("sample_size")
    sides = size if isinstance(size, list) else [size, size]
    if channels != shape[0] or (size is not None and [*shape[1:]] != sides):
        raise _component_error(
            path, UNET, f"in_channels={channels}, sample_size={size}: the data have shape {shape}"
        )


def _triptych_name(name: str) -> str:
    """Return the name that a parameter of the pipeline's network has in our model."""
    for before, after in OLD.items():
        name = name.replace(before, after)
    return f"denoiser.network.model.{name}"


def _prediction_type(scheduler: Config) -> str:
    """Return what the pipeline's network predicts, as its ``prediction_type``.

    Before diffusers 0.9 it was the boolean key ``predict_epsilon``.
    """
    if "predict_epsilon" in scheduler:
        if scheduler["predict_epsilon"]:
            return "epsilon"
        return "sample"
    return str(scheduler.get("prediction_type", "epsilon"))


def _component_file(path: str, name: str) -> Path:
    """Return the path of a component's file, such as unet/config.json.

    Early pipelines have it in the top folder.
    """
    file = Path(path) / name
    if file.parent.is_dir():
        return file
    return Path(path) / file.name


def _read_component_config(path: str, name: str, target: str = "") -> Config:
    """Read the JSON file of a component; UserError for keys or values that are not allowed.

    Allowed are the keys in ``VALUES`` and the arguments of the class ``target``.
    """
    try:
        record = read_json(_component_file(path, name))
    except FileNotFoundError as error:
        raise UserError(
            f"trained={path}: no {name}; pass a directory that save_pretrained wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise _component_error(path, name, f"not JSON ({error})") from error
    if not isinstance(record, dict):
        record = {}
    known = {*VALUES[name]}
    if target:
        known |= class_arguments(target)[0].keys() - INJECTED
    entries = {key: value for key, value in record.items() if not key.startswith("_")}
    for key, value in {"_class_name": record.get("_class_name"), **entries}.items():
        if key not in known:
            raise _component_error(path, name, f"{key}={value}: unknown key")
        allowed = VALUES[name].get(key)
        if allowed and value not in allowed:
            raise _component_error(
                path, name, f"{key}={value}: must be {' or '.join(map(str, allowed))}"
            )
    return entries


def _read_weights(path: str) -> Path:
    """Return the path of the weights' file; UserError if it is not a regular file."""
    file = _component_file(path, WEIGHTS)
    try:
        open_regular(file).close()
    except OSError as error:
        raise UserError(
            f"trained={path}: no {WEIGHTS}; save it with safe_serialization=True; a .bin is a "
            "pickle and is not opened"
        ) from error
    return file


def _component_error(path: str, name: str, problem: str) -> UserError:
    """Return the error about a component's file."""
    file = _component_file(path, name).relative_to(path)
    return UserError(f"trained={path}: {file}: {problem[:300]}")


def check_expressible(run: RunDirectory) -> tuple[Result, Config]:
    """Return a finished run's result and configuration, for export as a diffusers pipeline.

    Raises UserError if a pipeline cannot express the configuration.
    """
    result = run.summary()
    if result is None or result.status != "finished":
        raise UserError(f"{run.path}: no finished run; pass a run's directory")
    config = run.config()
    settings = dict(flatten_config(config))
    for key, values in EXPRESSIBLE.items():
        value = settings.get(key)
        if value not in values:
            raise UserError(
                f"{run.path}: {key}={value} cannot be expressed in diffusers; must be "
                f"{' or '.join(values)}"
            )
    return result, config


def write_pipeline(run: RunDirectory, model: Any, folder: Path, license: str) -> None:
    """Write a run's model, schedule and model card to ``folder`` as a pipeline, atomically."""
    result, config = check_expressible(run)
    import diffusers

    untyped: Any = diffusers
    output = config["objective"]["output"]
    schedule = {key: value for key, value in config["schedule"].items() if key != "_target_"}
    scheduler = untyped.DDPMScheduler(
        **schedule,
        prediction_type=TYPES[output["space"]],
        variance_type=VARIANCE_TYPES[config["bound"]["variance"]],
        clip_sample=output.get("clip") is not None,
        clip_sample_range=output.get("clip") or 1.0,
        timestep_spacing="trailing",
    )
    begun = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        pipeline = untyped.DDPMPipeline(model.denoiser.network.model, scheduler)
        pipeline.save_pretrained(begun)
        (begun / "README.md").write_text(model_card(result, license), encoding="utf-8")
        os.replace(begun, folder)
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def model_card(result: Result, license: str) -> str:
    """Return the README.md of a model on the Hugging Face Hub: data, bound, settings."""
    from huggingface_hub import EvalResult, ModelCardData

    data = result.record.get("data", {}).get("description", "images")
    name, task = result.name or "diffusion", "unconditional-image-generation"
    front: Entries = {
        "license": license,
        "library_name": "diffusers",
        "pipeline_tag": task,
        "tags": ["diffusers", "ddpm", "triptych"],
        "model_name": name,
    }
    bits = result.test.get("bpd")
    if bits:
        choice = result.choices.get("data", "custom")
        figure = EvalResult(task, choice, data, "bpd", bits.mean, metric_name="bound, bits/dim")
        front["eval_results"] = [figure]
    settings = [f"- `{key}={value}`" for key, value in result.overrides.items()]
    text = MODEL_CARD.format(
        name=name,
        data=data,
        bound=result_line(result),
        settings="\n".join(settings) or "The defaults.",
    )
    return escape_control_characters(f"---\n{ModelCardData(**front)}\n---\n\n{text}")
