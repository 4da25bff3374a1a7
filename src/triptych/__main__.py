"""List the commands: ``python -m triptych``."""

import sys

from triptych.cli.startup import answer_version

COMMANDS = """\
triptych-train     train a run, a sweep with -m, or go on with one
triptych-evaluate  measure the bound of a checkpoint
triptych-sample    draw samples from a checkpoint
triptych-report    compare runs in a report
triptych-export    write a run's model for diffusers

Each describes its arguments with --help."""


def main() -> None:
    """Print the commands, or the version; refuse other arguments."""
    arguments = [one for one in sys.argv[1:] if one not in ("-h", "--help")]
    answer_version(arguments)
    if arguments:
        names = ", ".join(line.split()[0] for line in COMMANDS.splitlines() if line.startswith("triptych-"))
        sys.exit(f"error: {arguments[0]}: no argument is needed; type one of {names}")
    print(COMMANDS)


if __name__ == "__main__":
    main()
