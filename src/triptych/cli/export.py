"""`triptych-export RUN to=diffusers DIR [license=mit]`: write a finished run's model for diffusers.

The run has `denoiser=unet2d schedule=betas`; anything else is refused. DIR must not exist or be empty.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from triptych.cli.arguments import check_place
from triptych.cli.startup import answer_version
from triptych.errors import UserError
from triptych.files import check_directory, typed_path
from triptych.run.command_errors import one_line_errors
from triptych.run.directory import RunDirectory
from triptych.run.pipeline import check_expressible, write_pipeline
from triptych.run.untrusted import find_checkpoint


def export(arguments: list[str]) -> Path:
    """Export as the command line says; return the directory written."""
    typed = [one for one in arguments if one.startswith(("to=", "license="))]
    places = [one for one in arguments if one not in typed]
    if len(places) != 2 or "to=diffusers" not in typed:
        fix = "type triptych-export RUN to=diffusers DIR [license=mit]"
        raise UserError(f"triptych-export {' '.join(arguments)}: {fix}")
    run, folder = RunDirectory(typed_path(places[0], "RUN")), typed_path(places[1], "OUT").absolute()
    check_directory(run.path)
    check_expressible(run)
    find_checkpoint(run.path, "run")
    check_place("DIR", str(folder), folder=True)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"DIR={places[1]}: is not empty; choose a new directory")
    if find_spec("diffusers") is None:
        raise UserError("to=diffusers: not installed; pip install 'triptych[diffusers]'")
    from triptych.run.reopen import reopen

    model = reopen(str(run.path), key="run").model
    write_pipeline(run, model, folder, dict(one.split("=", 1) for one in typed).get("license", "unknown"))
    return folder


def main() -> None:
    """Run the console script."""
    answer_version(sys.argv[1:])
    if {"-h", "--help"} & {*sys.argv[1:]}:
        sys.exit(print(__doc__))
    with one_line_errors("export"):
        print(f"{export(sys.argv[1:])}: a DDPMPipeline of diffusers, README.md")
    sys.exit(0)


if __name__ == "__main__":
    main()
