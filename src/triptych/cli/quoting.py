"""What a person types, as Hydra's grammar wants it."""


def quote_paths(arguments: list[str], keys: tuple[str, ...]) -> list[str]:
    """Arguments as Hydra's grammar wants them: a path may hold = and commas, as the names of runs do."""
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in keys and value and value[0] not in "'\"":
            value = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        quoted.append(f"{key}{equals}{value}")
    return quoted
