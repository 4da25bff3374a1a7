"""Export the model of a run as a diffusers ``DDPMPipeline`` with a model card for the Hub."""

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
    "model._target_": [pipeline.DIFFUSION],
    "denoiser._target_": [pipeline.DENOISER],
    "denoiser.network._target_": [pipeline.NETWORK],
    "schedule._target_": [pipeline.SCHEDULE],
    "process._target_": [pipeline.PROCESS],
    "objective.output._target_": [pipeline.OUTPUT],
    "objective.output.space": [*TYPES],
    "bound.variance": [*VARIANCES],
}
CARD = """# {name}

A diffusion model of {data}, trained and measured with Triptych.

    from diffusers import DDIMPipeline
    images = DDIMPipeline.from_pretrained("DIR")(batch_size=4, num_inference_steps=50).images

## Bound

{bound}. To measure it again: `triptych-train trained=DIR data=...`.

## Settings

{settings}
"""


def check_expressible(run: RunDirectory) -> tuple[Result, dict[str, Any]]:
    """Read a finished run's result and configuration; UserError for a key that diffusers cannot express."""
    result = run.summary()
    if result is None or result.status != "finished":
        raise UserError(f"{run.path}: no finished run; pass a run's directory")
    config = run.config()
    for key, values in NEEDED.items():
        value: Any = config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value not in values:
            problem = f"cannot be expressed in diffusers; must be {' or '.join(values)}"
            raise UserError(f"{run.path}: {key}={value} {problem}")
    return result, config


def write_pipeline(run: RunDirectory, folder: Path, license: str) -> None:
    """Write the reported weights, the schedule and a model card into ``folder``, atomically."""
    result, config = check_expressible(run)
    import diffusers

    from triptych.run.reopen import reopen

    theirs: Any = diffusers  # of which types are incomplete
    model: Any = reopen(str(run.path), key="run").model
    output = config["objective"]["output"]
    scheduler = theirs.DDPMScheduler(
        **{key: value for key, value in config["schedule"].items() if key != "_target_"},
        prediction_type=TYPES[output["space"]],
        variance_type=VARIANCES[config["bound"]["variance"]],
        clip_sample=output.get("clip") is not None,
        clip_sample_range=output.get("clip") or 1.0,
        timestep_spacing="trailing",
    )
    begun = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        theirs.DDPMPipeline(model.denoiser.network.model, scheduler).save_pretrained(begun)
        (begun / "README.md").write_text(model_card(result, config, license), encoding="utf-8")
        os.replace(begun, folder)
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def model_card(result: Result, config: dict[str, Any], license: str) -> str:
    """Return the README.md of a model on the Hub: front matter, data, bound with its interval, settings."""
    name, data = result.name or "diffusion", (result.record.get("data") or {}).get("description", "images")
    front: dict[str, Any] = {"license": license, "library_name": "diffusers"}
    front |= {"pipeline_tag": "unconditional-image-generation", "tags": ["diffusers", "ddpm", "triptych"]}
    bound = "Not measured"
    if bits := result.test.get("bpd"):
        terms = ", ".join(f"{part} {result.test[f'bpd_{part}'].mean:.4f}" for part in PARTS)
        low, high = bits.mean - 1.96 * bits.stderr, bits.mean + 1.96 * bits.stderr
        bound = (
            f"At most {bits.mean:.4f} bits/dim, 95% interval [{low:.4f}, {high:.4f}] over {bits.n} test items"
        )
        steps = config["bound"].get("steps") or "continuous time"
        bound += f" ({terms}; steps: {steps}; decoder: {config['bound']['decoder']})"
        metrics = [{"type": "bpd", "name": "bound, bits/dim", "value": bits.mean}]
        dataset = {"name": data, "type": result.choices.get("data", "custom")}
        measured = {"task": {"type": front["pipeline_tag"]}, "dataset": dataset, "metrics": metrics}
        front["model-index"] = [{"name": name, "results": [measured]}]
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items()]
    settings = "\n".join(f"- `{key}={value}`" for key, value in result.overrides.items()) or "The defaults."
    card = CARD.format(name=name, data=data, bound=bound, settings=settings)
    return printable("\n".join(["---", *lines, "---", "", card]))
