"""Write the model of a run as a ``DDPMPipeline`` of diffusers, with a model card as the Hub has them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from triptych.errors import UserError
from triptych.files import printable
from triptych.run import pipeline
from triptych.run.directory import RunDirectory
from triptych.run.result import PARTS, Result

TYPES = {space: name for name, space in pipeline.SPACES.items()}
VARIANCES = {"beta_tilde": "fixed_small", "beta": "fixed_large"}
NEEDED = {  # by key, what can be expressed
    "model._target_": (pipeline.DIFFUSION,),
    "denoiser._target_": (pipeline.DENOISER,),
    "denoiser.network._target_": (pipeline.NETWORK,),
    "schedule._target_": (pipeline.SCHEDULE,),
    "process._target_": (pipeline.PROCESS,),
    "objective.output._target_": (pipeline.OUTPUT,),
    "objective.output.space": tuple(TYPES),
    "bound.variance": tuple(VARIANCES),
}
CARD = """---
{front}
---

# {name}

A diffusion model of {data}, trained and measured with Triptych.

    from diffusers import DDIMPipeline
    images = DDIMPipeline.from_pretrained("DIR")(batch_size=4, num_inference_steps=50).images

## Bound

{bound}

To measure it again: `triptych-train trained=DIR data=...`.

## Settings

{settings}
"""


def check_expressible(run: RunDirectory) -> dict[str, Any]:
    """Return the configuration of a finished run that diffusers has classes for.

    Raises:
        UserError: no finished run; or a key that has no counterpart there.
    """
    if run.status != "finished":
        raise UserError(f"{run.path}: no finished run; pass a run's directory")
    config = run.config()
    for key, values in NEEDED.items():
        value: Any = config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value not in values:
            raise UserError(
                f"{run.path}: {key}={value} cannot be expressed in diffusers; must be {' or '.join(values)}"
            )
    return config


def write_pipeline(run: RunDirectory, folder: Path, license: str) -> None:
    """Write the run's reported weights, its schedule and a card into ``folder``, whole or not at all.

    Raises:
        UserError: as ``check_expressible`` and ``reopen``.
    """
    config = check_expressible(run)
    import diffusers

    from triptych.run.reopen import reopen

    theirs: Any = diffusers  # of which types are incomplete
    model: Any = reopen(str(run.path), key="run").model
    schedule = {key: value for key, value in config["schedule"].items() if key != "_target_"}
    clip = config["objective"]["output"].get("clip")
    scheduler = theirs.DDPMScheduler(
        **schedule,
        prediction_type=TYPES[config["objective"]["output"]["space"]],
        variance_type=VARIANCES[config["bound"]["variance"]],
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        timestep_spacing="trailing",
    )
    begun = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        theirs.DDPMPipeline(model.denoiser.network.model, scheduler).save_pretrained(begun)
        result = run.summary()
        assert result is not None
        (begun / "README.md").write_text(model_card(result, config, license), encoding="utf-8")
        os.replace(begun, folder)
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def model_card(result: Result, config: dict[str, Any], license: str) -> str:
    """Return the README.md of a model on the Hub: front matter, data, bound with its interval, settings."""
    name, data = result.name or "diffusion", str(result.record.get("data", {}).get("description", "its data"))
    estimate = result.test.get("bpd") or result.test.get("nats_per_dim")
    unit = "bits/dim" if "bpd" in result.test else "nats/dim"
    key = "bpd" if "bpd" in result.test else "nats_per_dim"
    front: dict[str, Any] = {
        "license": license,
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusers", "unconditional-image-generation", "ddpm", "triptych"],
    }
    bound = "Not measured."
    if estimate is not None:
        ends = estimate.mean - 1.96 * estimate.stderr, estimate.mean + 1.96 * estimate.stderr
        terms = ", ".join(f"{part} {result.test[f'{key}_{part}'].mean:.4f}" for part in PARTS)
        bound = (
            f"-log p(x) <= {estimate.mean:.4f} {unit}, 95% interval [{ends[0]:.4f}, {ends[1]:.4f}] over "
            f"{estimate.n} test items: {terms}. Steps: {config['bound'].get('steps') or 'continuous time'}; "
            f"decoder: {config['bound']['decoder']}."
        )
        metric = {"type": key, "name": f"bound, {unit}", "value": estimate.mean}
        task = {"task": {"type": "unconditional-image-generation"}, "metrics": [metric]}
        dataset = {"dataset": {"name": data, "type": str(result.choices.get("data", "custom"))}}
        front["model-index"] = [{"name": name, "results": [task | dataset]}]
    settings = [f"- `{key}={value}`" for key, value in result.overrides.items()] or ["The defaults."]
    return printable(
        CARD.format(
            front="\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items()),
            name=name,
            data=data,
            bound=bound,
            settings="\n".join(settings),
        )
    )
