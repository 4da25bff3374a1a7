"""Resolve a composed configuration once, as a request for a run to check and prepare."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from triptych.config.build import check_names, drop_unaccepted_arguments
from triptych.config.check import check_contradictions, check_overrides_are_read
from triptych.config.compose import to_plain, without_hydra
from triptych.config.identity import plain_name, slug
from triptych.config.keys import check_values, override_keys, role
from triptych.declare import Role
from triptych.errors import UserError
from triptych.records import Config
from triptych.run.untrusted import adopt_trained_config


@dataclass(frozen=True)
class Request:
    """The run that a command requests: its directory and its resolved, checked configuration.

    If the key ``trained`` names another run, keys and choices of the model are those of that run.
    """

    path: Path
    config: Config  # the resolved configuration, including keys such as force
    composed: DictConfig  # the configuration before it was resolved
    composed_choices: dict[str, Any]  # {config group: choice}, before ``trained`` was applied
    choices: dict[str, Any]
    overrides: tuple[str, ...]

    @property
    def recorded(self) -> Config:
        """The configuration that the run's directory records, without keys such as force."""
        config = {k: value for k, value in self.config.items() if role(k) is not Role.START}
        if config.get("init_from") is not None:
            config["init_from"] = str(Path(config["init_from"]).absolute())
        return config

    def check_overrides(self) -> None:
        """Raise UserError for an override without effect in this run."""
        check_overrides_are_read(self.config, override_keys(self.overrides))


def resolve(config: DictConfig, path: Path, hydra: DictConfig | None = None) -> Request:
    """Resolve the configuration of a run; raise UserError if a value is not allowed.

    ``path`` is the run's directory. ``hydra`` is the node ``hydra``, if ``config`` lacks it.
    """
    check_encoding(path)
    hydra = config.hydra if hydra is None else hydra
    overrides, choices = tuple(hydra.overrides.task), dict(hydra.runtime.choices)
    composed = without_hydra(config)
    resolved, adopted = to_plain(composed, throw_on_missing=True), dict(choices)
    typed = override_keys(overrides)
    drop_unaccepted_arguments(resolved, typed)
    if resolved["trainer"].get("max_epochs") and "trainer.max_steps" not in typed:
        # max_epochs on the command line takes precedence over max_steps in a configuration file.
        resolved["trainer"]["max_steps"] = None
    check_values(resolved)
    check_run_name(resolved["name"])
    check_contradictions(resolved)
    if resolved["trained"] is not None:
        adopt_trained_config(resolved, adopted, overrides)
    check_names(resolved)
    return Request(path.absolute(), resolved, composed, choices, adopted, overrides)


def check_encoding(path: Path) -> None:
    """Raise UserError if a path cannot be written into a record, which is UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{str(path)!a}: not valid UTF-8 in this locale; set LC_ALL=C.UTF-8, or use another "
            "directory"
        ) from error


def check_run_name(name: str | None) -> None:
    """Raise UserError if a run's name cannot be the name of its directory."""
    if not name or slug(str(name)) == str(name):
        return
    raise UserError(
        f"name={name}: not a directory's name; use at most 120 of a-z, A-Z, 0-9 and =,._+-, as in "
        f"name={plain_name(str(name))}"
    )
