"""Explain errors of Hydra and OmegaConf in one line: KEY=VALUE: problem; fix."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import OverrideParseException

from triptych.config.describe import listing, read_yaml
from triptych.config.habits import answer, nearest
from triptych.config.identity import leaves
from triptych.config.keys import FREE_GROUPS, Key, allowed, fields, find_key, of_class, takes_names
from triptych.config.schema import COMMANDS
from triptych.config.signatures import REQUIRED
from triptych.config.source import CONFIGS, choices_of, files_of, groups
from triptych.config.trust import check_name, trusted
from triptych.declare import describe_kind, unwrap

KEY = re.compile(r"[+~]*([A-Za-z_]\w*[./@:]?)*\b")
NEED_SWEEP = "several values need -m (a sweep)"
ONE_EACH = "several values; type one, and the command once for each"
EXTRAS = {  # files of packages that are not installed by default
    "hydra/launcher/ray": "ray",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
}
# groups of whose choices none is meant in the place of another group's
NO_OWNER = re.compile(f"({'|'.join(FREE_GROUPS)}|hydra)(/|$)|.*/(base|over)$")


class Typed(NamedTuple):
    """A command with its arguments, and what it says to several values for a key."""

    command: str
    arguments: Sequence[str]
    several: str

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (key, value) of each argument, plus and tilde removed."""
        for argument in self.arguments:
            key, _, value = argument.lstrip("+~").partition("=")
            yield key, value

    def override(self, key: str) -> "Override":
        """Return the argument for this key; the key alone if it stands in a file."""
        text = next((text for text in self.arguments if text.lstrip("+~").partition("=")[0] == key), key)
        return Override(text, key, text.partition("=")[2])


class Override(NamedTuple):
    """An argument, as it was typed and by its parts."""

    text: str
    key: str
    value: str

    @property
    def group(self) -> str:
        """Its group at the top: "objective" of "objective.loss.cap" and of "objective/loss"."""
        return re.split("[./]", self.key)[0]

    @property
    def parent(self) -> str:
        """Its key without the last part."""
        return self.key.rpartition(".")[0]


def explain(error: Exception, command: str, arguments: Sequence[str], several: str = "") -> str:
    """Explain an error in what ``command`` was given in one line; ``several``: the problem of several values.

    The command is the caller's to say: from Python, or in a worker, the process's own is another one.
    """
    typed = Typed(command, arguments, several or (NEED_SWEEP if command == "train" else ONE_EACH))
    if isinstance(error, OverrideParseException) and error.override in arguments:
        return _unreadable(error.override, typed)
    text = str(error)
    for pattern, step in STEPS.items():
        match = re.search(pattern, text)
        if match is None:
            continue
        if line := match.expand(step) if isinstance(step, str) else step(match, typed):
            return line
    return text


def _unreadable(override: str, typed: Typed) -> str:
    """Explain an argument that is not in the grammar of overrides."""
    key, equals, value = override.partition("=")
    command = typed.command
    several = re.split(r"\s+(?=[+~]*[\w./@]+=)", override)
    if len(several) > 1:
        return f"{override}: two overrides in one argument; type {several[0]} and {several[1]} apart"
    if not override.isprintable():
        return f"{override}: control characters are not allowed; leave them out"
    if not equals and (command == "train" or "ckpt" in dict(typed.pairs()) or key in _names(command)):
        return f"{override}: must be KEY=VALUE, with one ="
    if command != "train" and (not equals or _is_path(key, command)):
        return f"{override}: no key; type ckpt={override}"
    if not KEY.fullmatch(key):
        return f"{override}: no such key; names in a key are letters, digits and _, with dots between them"
    example = {"[": "['a=b','c']", "{": "{k:'a=b'}"}.get(value[:1], "'a=b'")
    return f'{override}: cannot be read as KEY=VALUE; quote special characters: "{key}={example}"'


def _is_path(key: str, command: str) -> bool:
    """Return whether a key is the beginning of a path, as of ``logs/sweeps/first/objective=v,seed=1``."""
    return "/" in key and key.split("/")[0] not in fields(Key(COMMANDS[command]).kind)


# a choice that does not exist -----------------------------------------------------------------------


def _no_such_choice(match: re.Match[str], typed: Typed) -> str:
    if extra := EXTRAS.get(match[1]):
        return f"{match[1]}: not installed; pip install 'triptych[{extra}]'"
    # the value may be a path
    split = (pair for pair in typed.pairs() if "/".join(pair) == match[1])
    group, option = next(split, match[1].rpartition("/")[::2])
    problem = f"{group}={option}: no such choice"
    if line := answer(group, option, "no such choice", typed.command):
        return line
    if group == "data" and ("/" in option or Path(option).exists()):
        fix = "type data=folder data.root=FOLDER for images; for others see docs/own-code.md"
        return f"{problem}; {fix}"
    if allowed(option):
        return f"{problem}; type {group.replace('/', '.')}._target_={option}"
    if owner := _owner(option, typed.command):
        return f"{problem}; type {owner}={option}"
    options = _options(group)
    near = nearest(option, options)
    if not near.startswith("choose from"):  # all that there is in any case: a group is short
        near += f" (choose from {', '.join(sorted(options))})"
    if not trusted():
        near += "; own package? set TRIPTYCH_TRUST"
    return f"{problem}; {near}"


def _owner(option: str, command: str) -> str:
    """Return the command's one group that has this choice; "" if there is none, or several."""
    owners = [
        group for group in _groups(command) if option in choices_of(group) and not NO_OWNER.match(group)
    ]
    return owners[0] if len(owners) == 1 else ""


# a key that does not exist --------------------------------------------------------------------------


def _no_such_key(match: re.Match[str], typed: Typed) -> str:
    override = typed.override(match[1].split("@")[0])
    if typed.command != "train" and _is_path(override.key, typed.command):
        return f"{override.text}: no key; type ckpt={override.text}"
    keys = [key for key, _ in typed.pairs()]
    if line := answer(override.key, override.value, command=typed.command, typed=keys):
        return line
    if override.group in fields(Key(COMMANDS[typed.command]).kind):
        for step in KEY_STEPS:
            if line := step(override, typed):
                return line
    return f"{override.text}: no such key; {nearest(override.key, _names(typed.command))}"


def _choice_as_key(override: Override, typed: Typed) -> str:
    """Explain ``objective.loss=elbo``, a choice that is typed like a key."""
    place = override.key.replace(".", "/")
    if place == override.key or not _options(place):
        return ""
    example = f"{place}={override.value or 'NAME'}"
    return f"{override.text.lstrip('+')}: a group; its choice is typed with a slash, as in {example}"


def _no_argument(override: Override, typed: Typed) -> str:
    """Explain a key that a typed class has not."""
    place = f"{override.parent}._target_"
    target = next((value for key, value in typed.pairs() if key == place != override.key), "")
    if not target:
        return ""
    arguments = of_class(check_name(target, override.parent))[0].items()
    known = [f"{override.parent}.{name}" for name, one in arguments if one.default is not REQUIRED]
    return f"{override.text}: {target} has no such argument; {nearest(override.key, known)}"


def _network_of_model(override: Override, typed: Typed) -> str:
    """Explain ``denoiser.network.width`` beside a model that has ``model.network.width``."""
    key = override.key.replace("denoiser.", "model.", 1)
    chosen = {value for name, value in typed.pairs() if name == "model"}
    if override.group != "denoiser" or chosen.isdisjoint(listing(key)):
        return ""
    fix = f"type {key}={override.value}"
    return f"{override.text}: no such key with this model, which has a network of its own; {fix}"


def _unlisted_argument(override: Override, typed: Typed) -> str:
    """Explain a key of the chosen file's class that the file does not list."""
    name = override.key.partition(".")[2]
    chosen = {value for key, value in typed.pairs() if key == override.group}
    for file in files_of(override.group):
        if file.stem not in chosen:
            continue
        if name in of_class(allowed(str(read_yaml(file).get("_target_"))))[0]:
            return f"{override.text}: a key that its file does not list; type +{override.text}"
    return ""


def _key_of_other_choice(override: Override, typed: Typed) -> str:
    """Explain a key that other choices of its group have, or of a group within it."""
    for depth in range(1, override.key.count(".") + 1):
        having = listing(override.key, depth)
        if not having:
            continue
        place = "/".join(override.key.split(".")[:depth])
        if line := _swept_key(override, place, having, typed):
            return line
        listed = _alternatives(place, sorted(having, key=len)[:3])
        return f"{override.text}: no such key with this choice of {place}; {listed} has it"
    return ""


def _swept_key(override: Override, place: str, having: Collection[str], typed: Typed) -> str:
    """Explain a key of a group that is swept over; "" if it is not."""
    axis = next((value for key, value in typed.pairs() if key == place), "")
    choices = axis.removeprefix("choice(").removesuffix(")").split(",")
    if len(choices) == 1:
        return ""
    if without := [name for name in choices if name not in having]:
        others = [name for name in choices if name in having] or having
        fix = f"sweep over those that have it: type {place}={','.join(others)}"
        return f"{override.text}: no such key with {_alternatives(place, without)}; {fix}"
    # Hydra sets a single value before it takes the first choice of a sweep
    return (
        f"{override.text}: a key of {place}, which is swept; type '{override.key}=choice({override.value})'"
    )


def _choice_of_other_group(override: Override, typed: Typed) -> str:
    """Explain ``data/encoder=words`` beside data without one."""
    above, _, nested = override.key.rpartition("/")
    if not above or not _options(override.key):
        return ""
    owners = (file.stem for file in files_of(above) if any(nested in one for one in _defaults_of(file)))
    listed = _alternatives(above, sorted(owners))
    return f"{override.text}: no such choice with this {above}; {listed} has it"


def _new_name(override: Override, typed: Typed) -> str:
    """Explain a new name in a group that takes names, as ``callbacks`` or ``condition_from``."""
    open_to_names = read_yaml(CONFIGS / f"{typed.command}.yaml").get(override.group) == {}
    of_member = override.key.endswith("._target_") and takes_names(override.parent.rpartition(".")[0])
    if open_to_names or of_member:
        return f"{override.text}: no such key; a new name is added with a plus, as in +{override.text}"
    if takes_names(override.parent):
        fix = f"+{override.parent}.NAME._target_=CLASS"
        return f"{override.text}: no such key; a new name needs its class, as in {fix}"
    return ""


KEY_STEPS: tuple[Callable[[Override, Typed], str], ...] = (
    _choice_as_key,
    _no_argument,
    _network_of_model,
    _unlisted_argument,
    _key_of_other_choice,
    _choice_of_other_group,
    _new_name,
)


# other errors ---------------------------------------------------------------------------------------


def _several_values(match: re.Match[str], typed: Typed) -> str:
    key, _, values = match[1].partition("=")
    kind = find_key(key.lstrip("+"), command=typed.command).kind
    lists = unwrap(kind)[0] is Any or "a list" in describe_kind(kind)
    fix = f"; for a list type {key}=[{values}]" if lists else ""
    return f"{match[1]}: {typed.several}{fix}"


def _no_choice(match: re.Match[str], typed: Typed) -> str:
    for group, option in typed.pairs():
        choices = _options(group)
        if choices and option not in choices:
            return f"{group}={option}: must be one of {', '.join(choices)}"
    return ""


def _of_omegaconf(match: re.Match[str], typed: Typed) -> str:
    problem = re.sub(r".*raised while [^:]*: ", "", match["problem"]).strip('"')
    where = f" (in {match['file']})" if match["file"] else ""
    return f"{match['key']}{where}: {problem}; type {match['key']}=VALUE"


STEPS: dict[str, str | Callable[[re.Match[str], Typed], str]] = {  # a text has the match's groups
    r"Could not (?:find|load) '([^']+)'": _no_such_choice,
    r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'": _no_such_key,
    r"Error merging override \+*((\S+?)=.*)": r"\1: must be a group of keys, each typed as \2.KEY=VALUE",
    r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'": _several_values,
    r"Config group override must be a string": _no_choice,
    r"Missing mandatory value: (\S+)": r"\1: missing; type \1=VALUE",
    r"Multiple values for (\S+)\. .*: (\S+)'": (r"+\1=\2: has a choice already; type \1=\2 without the plus"),
    r"^(?:In '(?P<file>\S+)': )?(?:.*\n)*?(?P<problem>[^\n]+?)\s+full_key: (?P<key>\S+)": _of_omegaconf,
}


def _alternatives(group: str, choices: Iterable[str]) -> str:
    return " or ".join(f"{group}={choice}" for choice in choices)


def _defaults_of(file: Path) -> list[dict[str, Any]]:
    return [one for one in read_yaml(file).get("defaults", []) if isinstance(one, dict)]


def _options(group: str) -> list[str]:
    names = choices_of(group)
    if group == "hydra/launcher":
        names += ["joblib", *(name.rpartition("/")[2] for name in EXTRAS)]
    return sorted(names)


def _groups(command: str) -> list[str]:
    """Return the groups of which a command has a choice."""
    if command == "train":
        return groups()
    return [group for one in _defaults_of(CONFIGS / f"{command}.yaml") for group in one]


def _names(command: str) -> list[str]:
    """Return the names of a command's groups and keys, with those of all choices."""
    every = _groups(command)
    names = [key for key, _ in leaves(read_yaml(CONFIGS / f"{command}.yaml"))]
    for group in every:
        if group.split("/")[0] in FREE_GROUPS:  # whose files have keys of other groups
            continue
        place = group.removesuffix("/base").replace("/", ".")
        names += [f"{place}.{key}" for file in files_of(group) for key, _ in leaves(read_yaml(file))]
    return [*every, *(name for name in names if name.rpartition(".")[2] != "defaults")]
