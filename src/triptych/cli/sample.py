"""Draw samples from a checkpoint with ``triptych-sample``.

Example: ``triptych-sample ckpt=PATH n=64 sampler=ddim sampler.steps=20``.
"""

import contextlib
import io
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from triptych.cli.arguments import run_command
from triptych.cli.outputs import check_output_folder
from triptych.config.compose import checked_values
from triptych.errors import UserError
from triptych.run.directory import atomic
from triptych.run.untrusted import find_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

MAX_PICTURED = 400  # maximum number of samples in the picture
OUTPUT_FILES = ("samples.pt", "samples.png", "trajectory.png")


def sample(cfg: DictConfig) -> Path:
    """Draw ``cfg.n`` samples, save them as a picture and a tensor, and return their folder.

    The folder is ``cfg.out``, or a new one beside it (see ``save_tensor``).
    """
    values = checked_values(cfg, "sample")
    check_output_folder("out", values["out"])
    for key, path in checkpoint_paths(
        values
    ).items():  # report a missing file before torch is imported
        find_checkpoint(path, key)
    from triptych.run import sample as sampling
    from triptych.run.pictures import save_picture, save_trajectory
    from triptych.run.reopen import reopen

    if values["cascade"] is None:
        drawing = sampling.build_run_drawing(reopen(cfg.ckpt, cfg.weights, cfg.data_root), values)
    else:
        drawing = sampling.build_cascade_drawing(values)
    drawn = sampling.draw_all_sources(drawing, values)
    samples = drawn[sampling.SAMPLES]
    folder = save_tensor(samples, Path(cfg.out))
    save_picture(samples[:MAX_PICTURED], drawing.data, folder / "samples.png")
    for index, name in enumerate(drawing.sources):
        if name in drawing.stages:
            save_picture(
                drawn[name][:MAX_PICTURED], drawing.stages[name].data, folder / f"stage_{index}.png"
            )
    if values["trajectory"] is not None:
        condition = sampling.build_condition(drawing, values, cfg.n)
        seed, few = sampling.batch_seed(values, 0), min(cfg.n, cfg.batch_size)
        save_trajectory(drawing, condition, few, seed, folder)
    return folder


def checkpoint_paths(values: dict[str, Any]) -> dict[str, str]:
    """Return {configuration key: checkpoint path}, of ``ckpt`` or of each stage of ``cascade``."""
    stages = values["cascade"]
    if stages is None:
        if values["ckpt"] == "???":
            raise UserError("ckpt: missing; type ckpt=RUN, or cascade=[RUN,RUN]")
        check_unused(values, ("stages", "noise"), "allowed only with cascade=[RUN,RUN]")
        return {"ckpt": values["ckpt"]}
    check_unused(values, ("trajectory", "like"), "must be null with a cascade")
    if values["ckpt"] != "???":
        raise UserError(f"ckpt={values['ckpt']} with cascade={stages}: type only one of them")
    return {f"cascade[{index}]": path for index, path in enumerate(stages)}


def check_unused(values: dict[str, Any], keys: tuple[str, ...], problem: str) -> None:
    """Raise UserError if one of ``keys`` is set, as it has no effect with these values."""
    for key in keys:
        if values[key]:
            raise UserError(f"{key}={values[key]}: {problem}")


def save_tensor(x: "Tensor", out: Path) -> Path:
    """Save ``samples.pt`` atomically in the folder ``out``, and return this folder.

    If ``out`` already contains samples, use the next free folder of out-2, out-3, ....
    """
    import torch

    # Torch reports a full disk as RuntimeError if it writes the file itself.
    buffer = io.BytesIO()
    torch.save({"x": x}, buffer)
    numbered = (out.with_name(f"{out.name}-{number}") for number in count(2))
    for folder in chain([out], numbered):
        if any((folder / name).exists() for name in OUTPUT_FILES):
            continue
        # Another command has just created it; try the next name.
        with contextlib.suppress(FileExistsError):
            with atomic(folder / "samples.pt", new=True) as file:
                file.write(buffer.getvalue())
            return folder
    raise AssertionError  # unreachable, as there is always a further name


def sample_and_print(cfg: DictConfig) -> None:
    """Draw and save samples, and print the files' names."""
    folder = sample(cfg).absolute()
    files = ["samples.png", "samples.pt"]
    if cfg.trajectory is not None:
        files.append("trajectory.png")
    print(f"{cfg.n} samples: {', '.join(str(folder / name) for name in files)}")


def main() -> None:
    """Run the command ``triptych-sample``."""
    run_command("sample", sample_and_print)


if __name__ == "__main__":
    main()
