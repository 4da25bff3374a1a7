"""Explain errors of Hydra and OmegaConf in one line: KEY=VALUE: problem; fix.

``EXPLANATIONS`` lists all explanations; the tests type the example of each.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from hydra.errors import OverrideParseException

from triptych.config.describe import choices_with_key, read_yaml
from triptych.config.habits import advice, closest_name, suggest_name
from triptych.config.identity import flatten_config
from triptych.config.keys import FREE_GROUPS
from triptych.config.source import CONFIGS, config_groups, group_choices, group_files

QUOTED = {"train": "name='a=b'", "evaluate": "ckpt='a=b'", "sample": "ckpt='a=b'"}


class Explanation(NamedTuple):
    """A pattern of Hydra's error message, an example that causes the error, and the line to show.

    Braces in the line are replaced by the pattern's groups, and ``{fix}`` by the result of
    ``find_fix(command, **groups)``.
    """

    pattern: str
    example: str
    line: str
    find_fix: Callable[..., str] | None = None


def explain(error: Exception, command: str) -> str:
    """Explain an error in a command's overrides; if no pattern matches, return the error's text."""
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: must be KEY=VALUE; quote special characters, as in "
            f"{QUOTED[command]}"
        )
    text = str(error)
    for row in EXPLANATIONS:
        match = re.search(row.pattern, text)
        if match:
            words = match.groupdict()
            if row.find_fix is not None:
                words["fix"] = row.find_fix(command, **words)
            return row.line.format(**words)
    return text


def choice_fix(command: str, group: str, choice: str) -> str:
    """Return advice on what to type in place of a choice that its group does not have."""
    options = group_choices(group)
    every = f"choose from {', '.join(options)}"
    match = closest_name(choice, options)
    if match:
        every = f"did you mean {match}? ({every})"
    return advice(group, choice, command) or every


def key_fix(command: str, key: str, value: str = "") -> str:
    """Return advice on what to type in place of a key that does not exist."""
    text = advice(key, value, command) or hint_other_choices(command, key, value)
    return text or suggest_name(key, known_names(command))


def hint_other_choices(command: str, key: str, value: str) -> str:
    """Return a hint naming other choices of the key's group whose files have the key; or ""."""
    parts = key.split(".")
    for depth in range(1, len(parts)):
        group = "/".join(parts[:depth])
        choices = choices_with_key(key, depth)
        if choices and group in command_groups(command):
            few = " or ".join(f"{group}={choice}" for choice in sorted(choices, key=len)[:3])
            return f"it exists with {few} (in a sweep over {group}, type '{key}=choice({value})')"
    return ""


def command_groups(command: str) -> list[str]:
    """Return the config groups from which a command can choose."""
    if command == "train":
        return config_groups()
    defaults = read_yaml(CONFIGS / f"{command}.yaml").get("defaults", [])
    return [group for entry in defaults if isinstance(entry, dict) for group in entry]


def known_names(command: str) -> list[str]:
    """Return the names of a command's groups and keys, including those of all choices."""
    known = command_groups(command)
    for group in [*known]:
        # Files of these groups set keys of other groups.
        if group.split("/")[0] not in (*FREE_GROUPS, "hydra"):
            place = group.removesuffix("/base").replace("/", ".")
            for file in group_files(group):
                known += [f"{place}.{key}" for key, _ in flatten_config(read_yaml(file))]
    known += [key for key, _ in flatten_config(read_yaml(CONFIGS / f"{command}.yaml"))]
    return [name for name in known if name.rpartition(".")[2] != "defaults"]


NO_CHOICE = r"Could not (?:find|load) '"
NO_KEY = r"Could not override '[^']+'.*\n.* use \+"
EXPLANATIONS = (
    Explanation(
        rf"{NO_CHOICE}(?P<launcher>hydra/launcher/ray)'",
        "hydra/launcher=ray",
        "{launcher}: not installed; pip install 'triptych[ray]'",
    ),
    Explanation(
        rf"{NO_CHOICE}(?P<launcher>hydra/launcher/submitit_\w+)'",
        "hydra/launcher=slurm",
        "{launcher}: not installed; pip install 'triptych[slurm]'",
    ),
    Explanation(
        rf"{NO_CHOICE}data/(?P<path>[^']*/[^']*)'",
        "data=/x/y.npz",
        (
            "data={path}: no such choice; type data=folder data.root=FOLDER for images; see "
            "docs/own-code.md"
        ),
    ),
    Explanation(
        rf"{NO_CHOICE}(?P<group>[^']+)/(?P<choice>[^/']*)'",
        "objective=x00",
        "{group}={choice}: no such choice; {fix}",
        choice_fix,
    ),
    Explanation(
        rf"{NO_KEY}(?P<typed>((callbacks|metrics|logger|augmentation)\.\w+\._target_|condition_from\b).*)",
        "callbacks.rates._target_=pytorch_lightning.callbacks.LearningRateMonitor",
        "{typed}: no such key; a new name is added with a plus, as in +{typed}",
    ),
    Explanation(
        rf"{NO_KEY}(?P<key>[^=@]+)(?:@[^=]*)?=(?P<value>.*)",
        "objctive=x0",
        "{key}={value}: no such key; {fix}",
        key_fix,
    ),
    Explanation(
        r"Could not delete from config[^']*'(?P<key>[^']+)'",
        "~smapler",
        "~{key}: no such key; {fix}",
        key_fix,
    ),
    Explanation(
        r"Could not append to config[^']*'(?P<key>[^']+)'",
        "+seed=2",
        (
            "+{key}: this key exists already; leave out the plus, and type a group's choice "
            "as objective/loss=elbo"
        ),
    ),
    Explanation(
        r"(?:Ambiguous value for argument|Sweep parameters) '(?P<typed>.+)'",
        "seed=1,2",
        (
            "{typed}: several values are given; type one, or sweep with triptych-train -m; type a "
            "list as KEY=[A,B]"
        ),
    ),
    Explanation(
        r"Error merging override \+*(?P<typed>(?P<key>\S+?)=.*)",
        "condition_from=[a]",
        "{typed}: must be a group of keys, each typed as {key}.KEY=VALUE",
    ),
    Explanation(
        r"Config group override must be a string",
        "denoiser=null",
        "the choice of a group must be a name, as in denoiser=dit",
    ),
    Explanation(
        r"Missing mandatory value: (?P<key>\S+)",
        "seed=???",
        "{key}: missing; type {key}=VALUE",
    ),
    Explanation(
        r"Multiple values for (?P<group>\S+)\. .*: (?P<choice>\S+)'",
        "+objective=v",
        "+{group}={choice}: this group is set already; type {group}={choice} without the plus",
    ),
    Explanation(
        r"maximum recursion depth exceeded",
        "experiment=loop",  # a file with itself among its defaults
        "a configuration file includes itself; take it out of the defaults",
    ),
    Explanation(
        r"'utf-8' codec can't decode (?P<problem>.*)",
        "experiment=latin",  # a file with bytes of another encoding
        "a configuration file is not UTF-8 ({problem}); save it as UTF-8",
    ),
    Explanation(
        (
            r"^(?:In '\S+': )?(?:.*raised while [^:]*: )?\"?(?P<problem>.+?)\"?\s+full_key: "
            r"(?P<key>\S+)"
        ),
        "seed=${nowhere}",
        "{key}: {problem}; type {key}=VALUE",
    ),
)
