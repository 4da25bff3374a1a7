"""Write a finished run's model for diffusers: `triptych-export RUN to=diffusers DIR [license=mit]`.

The run must have `denoiser=unet2d schedule=betas`; any other run is refused. DIR must be new or
empty.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from triptych.cli.outputs import check_output_folder
from triptych.cli.startup import print_version_and_exit
from triptych.errors import UserError
from triptych.files import check_directory, parse_path
from triptych.run.command_errors import one_line_errors
from triptych.run.directory import RunDirectory
from triptych.run.pipeline import check_expressible, write_pipeline
from triptych.run.untrusted import find_checkpoint


def export(arguments: list[str]) -> Path:
    """Export the run that the command's arguments name, and return the directory of the export."""
    source, target, license_name = parse(arguments)
    run, folder = RunDirectory(parse_path(source, "RUN")), parse_path(target, "OUT").absolute()
    check_directory(run.path)
    check_expressible(run)
    find_checkpoint(run.path, "run")
    check_output_folder("DIR", str(folder))
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"DIR={target}: is not empty; choose a new directory")
    if find_spec("diffusers") is None:
        raise UserError("to=diffusers: not installed; pip install 'triptych[diffusers]'")
    from triptych.run.reopen import reopen

    model = reopen(str(run.path), key="run").model
    write_pipeline(run, model, folder, license_name)
    return folder


def parse(arguments: list[str]) -> tuple[str, str, str]:
    """Parse the command's arguments; return run directory, output directory and licence."""
    options = {"to": "", "license": "unknown"}
    places = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in options:
            options[key] = value
        else:
            places.append(argument)
    if len(places) != 2 or options["to"] != "diffusers":
        raise UserError(
            f"triptych-export {' '.join(arguments)}: type triptych-export RUN to=diffusers DIR "
            "[license=mit]"
        )
    return places[0], places[1], options["license"]


def main() -> None:
    """Run the command ``triptych-export``."""
    print_version_and_exit(sys.argv[1:])
    if {"-h", "--help"} & {*sys.argv[1:]}:
        sys.exit(print(__doc__))
    with one_line_errors("export"):
        print(f"{export(sys.argv[1:])}: saved as a DDPMPipeline of diffusers, with README.md")
    sys.exit(0)


if __name__ == "__main__":
    main()
