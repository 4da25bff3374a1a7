"""What a person types, as Hydra wants it."""

import re

from triptych.config.keys import find

FLAG = re.compile(r"--(?P<key>[A-Za-z_][\w./@]*)=(?P<value>.*)", re.DOTALL)
HYDRAS = ("package", "info", "cfg")  # of its own flags those that look like keys with a value


def without_hyphens(argument: str) -> str:
    """``--optimizer.lr=0.1``, an override as W&B's agents write it, without hyphens; None becomes null."""
    found = FLAG.fullmatch(argument)
    if found is None or found["key"] in HYDRAS:
        return argument
    return f"{found['key']}={'null' if found['value'] == 'None' else found['value']}"


def as_hydra_wants(arguments: list[str], command: str) -> list[str]:
    """Arguments of ``command``, paths in quotes: they may hold = and commas, as the names of runs do.

    An override may have two hyphens before it.

    Where they ask for completion (``-sc``), Hydra's is extended by what is declared.
    """
    if {"-sc", "--shell-completion"} & set(arguments):
        from triptych.config.describe import complete_for

        complete_for(command)
    quoted = []
    for argument in map(without_hyphens, arguments):
        key, equals, value = argument.partition("=")
        if equals and value and value[0] not in "'\"" and find(key.lstrip("+"), command=command).is_path:
            value = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        quoted.append(f"{key}{equals}{value}")
    return quoted
