"""Compose and check a command's configuration; explain errors of Hydra and OmegaConf in one line."""

import copy
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.hydra import Hydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from triptych.config.check import check_keys
from triptych.config.describe import listing, read_yaml
from triptych.config.habits import MEANT, answer, nearest
from triptych.config.identity import ABSENT, leaves, quote, register_resolvers
from triptych.config.keys import FREE_GROUPS, allowed, check_values, find_key, of_class, takes_names
from triptych.config.source import CONFIGS, REQUIRED, choices_of, files_of, full_name, groups, places
from triptych.config.trust import NAME, check_name, trusted
from triptych.declare import describe_kind, unwrap
from triptych.errors import UserError

NEED_SWEEP = "several values need -m (a sweep)"
EXTRAS = {  # files of packages that are not installed by default
    "hydra/launcher/ray": "ray",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
}
FILES: dict[tuple[str, ...], Any] = {}  # by the folders that are searched and the file's name
MAP = defaults_list._create_interpolation_map


class SharedFiles(CachingConfigRepository):
    """Hydra's repository of a composition, with the files that earlier ones of this process have read."""

    def load_config(self, config_path: str) -> Any:
        """Return a file's content; a composition makes it part of its own, so it gets a copy."""
        if config_path not in self.cache:
            key = (*(source.path for source in self.get_sources()), config_path)
            if key not in FILES:
                FILES[key] = self.delegate.load_config(config_path)
            self.cache[config_path] = copy.deepcopy(FILES[key])
        return self.cache[config_path]


def _map(overrides: Any, defaults: Any, self_added: bool) -> Any:
    """Return the choices that a list of defaults can refer to, None for one without references."""
    return MAP(overrides, defaults, self_added) if any(one.is_interpolation() for one in defaults) else None


def share_files() -> None:
    """Make Hydra read each file once, and not compose all once more to look up ``hydra.mode``."""
    # Hydra has no hooks for them
    config_loader_impl.CachingConfigRepository = SharedFiles  # type: ignore[misc]
    defaults_list._create_interpolation_map = _map  # type: ignore[assignment]
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]


def compose_command(command: str, overrides: Sequence[str]) -> DictConfig:
    """Compose ``overrides`` as ``triptych-COMMAND`` does, with Hydra's node; UserError in the same words."""
    register_resolvers()
    share_files()
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = hydra.compose(command, overrides=list(overrides), return_hydra_config=True)
            if command == "train":
                check_keys(cfg, cfg.hydra)
            return cfg
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: Hydra's of a group
        raise UserError(explain(error, overrides)) from error


def edits(was: Any, now: Any, key: str = "") -> Iterator[str]:
    """Yield the overrides that turn one configuration into another: ``a.b=1``, ``+a.c=x``, ``~a.d``."""
    if isinstance(was, Mapping) and isinstance(now, Mapping) and now:
        for name in dict.fromkeys([*was, *now]):
            at = f"{key}.{name}" if key else str(name)
            yield from edits(was.get(name, ABSENT), now.get(name, ABSENT), at)
    elif now is ABSENT:
        yield from [f"~{key}"] * (was is not None)  # Hydra cannot delete a null, and need not
    elif was is ABSENT:
        yield f"+{key}={typed(now)}"
    elif was != now or type(was) is not type(now):
        yield f"{key}={typed(now)}"


def typed(value: Any) -> str:
    """Format a plain value in the grammar of Hydra's overrides; UserError if it is not plain."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return value if NAME.fullmatch(value) else quote(value)  # a class is looked up as it is typed
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{typed(v)}" for k, v in value.items()) + "}"
    raise UserError(f"{value!r}: must be a number, text, boolean, null, or a list or mapping of them")


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration without Hydra's node, interpolations unresolved."""
    return to_plain(without_hydra(cfg), resolve=False)


def to_plain(cfg: Any, resolve: bool = True, throw_on_missing: bool = False) -> dict[str, Any]:
    """Resolve a config group to plain dictionaries and lists."""
    plain = OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=throw_on_missing)
    return cast(dict[str, Any], plain)


def checked_values(cfg: DictConfig, command: str) -> dict[str, Any]:
    """Resolve ``cfg``; UserError for a value outside of its declaration."""
    values = to_plain(cfg)
    check_values(values, command)
    return values


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return the configuration without Hydra's node."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Explain a Hydra or OmegaConf error in one line: KEY=VALUE: problem; fix."""
    text = str(error)
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        if extra := EXTRAS.get(match[1]):
            return f"{match[1]}: not installed; pip install 'triptych[{extra}]'"
        group, _, option = match[1].rpartition("/")
        for key, _, value in (one.lstrip("+").partition("=") for one in arguments):
            if f"{key}/{value}" == match[1]:  # the value may be a path
                group, option = key, value
        options = _options(group)
        if ".." in match[1]:
            return f"{match[1]}: .. is not allowed; type GROUP=NAME"
        if line := answer(group, option, "no such choice"):
            return line
        if group == "data" and ("/" in option or Path(option).exists()):
            fix = "type data=folder data.root=FOLDER for images; for others see docs/own-code.md"
            return f"{group}={option}: no such choice; {fix}"
        if full_name(option):
            return f"{group}={option}: no such choice; type {group.replace('/', '.')}._target_={option}"
        near = nearest(option, options)
        if not near.startswith("choose from"):  # all that there is in any case: a group is short
            near += f" (choose from {', '.join(sorted(options))})"
        if lost := [name for name in trusted() if not places(name)]:
            near += f"; a trusted package lies nowhere on Python's path: {', '.join(lost)}"
        if not trusted():
            near += "; own package? set TRIPTYCH_TRUST"
        return f"{group}={option}: no such choice; {near}"
    if match := re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text):
        key = match[1].split("@")[0]
        override = next((a for a in arguments if a.lstrip("+~").split("=")[0] == key), key)
        here = _command() == "train" or MEANT.get(key, "").rpartition(" ")[2] in _all_names()
        known = answer(key, override.partition("=")[2]) if here else ""
        return known or _no_such_key(key, override, arguments)
    if match := re.search(r"Error merging override \+*((\S+?)=.*)", text):
        return f"{match[1]}: must be a group of keys, each typed as {match[2]}.KEY=VALUE"
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", text):
        if _command() != "train":
            return f"{match[1]}: several values; type one, and the command once for each"
        key, _, values = match[1].partition("=")
        kind = find_key(key.lstrip("+")).kind
        lists = unwrap(kind)[0] is Any or "a list" in describe_kind(kind)
        fix = f"; for a list type {key}=[{values}]" if lists else ""
        return f"{match[1]}: {NEED_SWEEP}{fix}"
    if isinstance(error, OverrideParseException) and (override := error.override) in arguments:
        if len(several := re.split(r"\s+(?=[+~]*[\w./@]+=)", override)) > 1:
            return f"{override}: two overrides in one argument; type {several[0]} and {several[1]} apart"
        if "=" not in override and _command() != "train":
            return f"{override}: no key; type ckpt={override}"
        key, equals, value = override.partition("=")
        if equals and re.fullmatch(r"[+~]*[\w/]+/\w+(\.\w+)+", key):
            return f"{override}: a slash is for choices; type {key.replace('/', '.')}={value}"
        if not equals or value[:1] == "=":
            return f"{override}: must be KEY=VALUE, with one =" + f"; type {key}{value}" * bool(equals)
        return f"{override}: cannot be read as KEY=VALUE; quote special characters: \"{key}='a=b'\""
    if "Config group override must be a string" in text:
        for override in arguments:
            group, _, option = override.lstrip("+").partition("=")
            if (choices := _options(group)) and option not in choices:
                return f"{override}: must be one of {', '.join(choices)}"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1]}: missing; type {match[1]}=VALUE"
    if match := re.search(r"Multiple values for (\S+)\. .*: (\S+)'", text):
        return f"+{match[1]}={match[2]}: has a choice already; type {match[1]}={match[2]} without the plus"
    where = re.match(r"In '(\S+)': ", text)
    if match := re.search(r"([^\n]+?)\s+full_key: (\S+)", text):  # OmegaConf's
        problem = re.sub(r".*raised while [^:]*: ", "", match[1])
        return f"{match[2]}{f' (in {where[1]})' if where else ''}: {problem}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])


def _no_such_key(key: str, override: str, arguments: Sequence[str]) -> str:
    """Suggest the choice of the group that has this key, else the nearest name."""
    group, *names = key.split(".")
    parent = key.rpartition(".")[0]
    if names and _options(place := key.replace(".", "/")):  # a choice, typed like a key
        choice = override.partition("=")[2] or "NAME"
        return f"{override.lstrip('+')}: a group; its choice is typed with a slash, as in {place}={choice}"
    typed = (one.lstrip("+").partition("=") for one in arguments)
    target = next((value for name, _, value in typed if name == f"{parent}._target_" != key), "")
    if target:
        of_target = of_class(check_name(target, parent))[0].items()
        known = [f"{parent}.{name}" for name, one in of_target if one.default is not REQUIRED]
        return f"{override}: {target} has no such argument; {nearest(key, known)}"
    models = [one.partition("=")[2] for one in arguments if one.startswith("model=")]
    if group == "denoiser" and {*models} & {*listing(own := f"model.{'.'.join(names)}")}:
        fix = f"type {own}={override.partition('=')[2]}"
        return f"{override}: no such key with this model, which has a network of its own; {fix}"
    chosen = [f for f in files_of(group) if f"{group}={f.stem}" in arguments]
    if any(".".join(names) in of_class(allowed(str(read_yaml(f).get("_target_"))))[0] for f in chosen):
        return f"{override}: a key that its file does not list; type +{override}"
    for depth in range(1, key.count(".") + 1):  # of the group, then of one within it
        if others := listing(key, depth):
            place = "/".join(key.split(".")[:depth])
            listed = " or ".join(f"{place}={one}" for one in sorted(others, key=len)[:3])
            value = override.partition("=")[2]
            swept = any(re.match(rf"{place}=[^\[]*,", one) for one in arguments)
            # Hydra sets a single value before it takes the first choice of a sweep
            if swept and not re.match(r"\w+\(|[^\[]*,|.*\],", value):
                return f"{override}: a key of {place}, which is swept; type '{key}=choice({value})'"
            return f"{override}: no such key with this choice of {place}; {listed} has it"
    above, _, nested = key.rpartition("/")
    if above and _options(key):
        owners = (f.stem for f in files_of(above) if any(nested in one for one in _defaults_of(f)))
        listed = " or ".join(f"{above}={one}" for one in sorted(owners))
        return f"{override}: no such choice with this {above}; {listed} has it"
    open_to_names = read_yaml(CONFIGS / f"{_command()}.yaml").get(group) == {}  # as condition_from
    if open_to_names or ("_target_" in names and takes_names(parent.rpartition(".")[0])):
        return f"{override}: no such key; a new name is added with a plus, as in +{override}"
    if names and takes_names(parent):
        return f"{override}: no such key; a new name needs its class, as in +{parent}.NAME._target_=CLASS"
    return f"{override}: no such key; {nearest(key, _all_names())}"


def _defaults_of(file: Path) -> list[dict[str, Any]]:
    return [one for one in read_yaml(file).get("defaults", []) if isinstance(one, dict)]


def _options(group: str) -> list[str]:
    names = choices_of(group)
    if group == "hydra/launcher":
        names += ["joblib", *(name.rpartition("/")[2] for name in EXTRAS)]
    return sorted(names)


def _command() -> str:
    return next((d for d in ("evaluate", "sample") if d in Path(sys.argv[0]).stem), "train")


def _all_names() -> list[str]:
    file = CONFIGS / f"{_command()}.yaml"
    own = [group for one in _defaults_of(file) for group in one]
    every = groups() if file.stem == "train" else own
    names = [at for at, _ in leaves(read_yaml(file))]
    for group in every:
        if group.split("/")[0] in FREE_GROUPS:  # whose files have keys of other groups
            continue
        place = group.removesuffix("/base").replace("/", ".")
        names += [f"{place}.{at}" for file in files_of(group) for at, _ in leaves(read_yaml(file))]
    return [*every, *(one for one in names if one.rpartition(".")[2] != "defaults")]
