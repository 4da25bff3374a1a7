"""What a person types, as Hydra wants it."""

from triptych.config.keys import find


def as_hydra_wants(arguments: list[str], command: str) -> list[str]:
    """Arguments of ``command``, paths in quotes: they may hold = and commas, as the names of runs do.

    Where they ask for completion (``-sc``), Hydra's is extended by what is declared.
    """
    if {"-sc", "--shell-completion"} & set(arguments):
        from triptych.config.describe import complete_for

        complete_for(command)
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and value and value[0] not in "'\"" and find(key.lstrip("+"), command=command).is_path:
            value = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        quoted.append(f"{key}{equals}{value}")
    return quoted
