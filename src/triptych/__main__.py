"""List the commands: ``python -m triptych``."""

import sys

from triptych.cli.startup import print_version_and_exit

COMMANDS = """\
triptych-train     train a run, or a sweep with -m; resume either
triptych-evaluate  measure the bound of a checkpoint
triptych-sample    draw samples from a checkpoint
triptych-report    compare runs in a report
triptych-export    write a run's model for diffusers

Each describes its arguments with --help."""


def main() -> None:
    """Print the commands, or the version."""
    print_version_and_exit(sys.argv[1:])
    if sys.argv[1:] not in ([], ["--help"]):
        sys.exit(
            "error: python -m triptych only lists the commands; type one, as triptych-train --help"
        )
    print(COMMANDS)


if __name__ == "__main__":
    main()
