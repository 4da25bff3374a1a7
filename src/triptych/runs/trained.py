"""``trained=DIR``: a run on the model of a finished one, for other samplers, guidance and measures of it."""

from typing import TYPE_CHECKING, Any

from triptych.config.keys import of_model, with_roles
from triptych.declare import Role
from triptych.errors import UserError
from triptych.files import check_directory
from triptych.runs.directory import RunDirectory
from triptych.runs.untrusted import check_config

if TYPE_CHECKING:
    from triptych.data.fingerprint import Fingerprint


def adopt(config: dict, choices: dict[str, Any], overrides: list[str]) -> None:
    """Put what the run ``config["trained"]`` says of its model into a composed configuration and its choices.

    Raises:
        UserError: no finished run there; an override of what only the other run can say.
    """
    path = config["trained"]
    source = RunDirectory(path)
    check_directory(source.path)
    if source.status != "finished":
        state = "no run" if source.status == "new" else f"the run there is {source.status}"
        raise UserError(f"trained={path}: {state}; the directory of a finished run is accepted")
    own = ", ".join(with_roles(Role.DRAWING, Role.SEED, Role.MACHINE))
    for override in overrides:
        if override.lstrip("+~").split("=")[0].split(".")[0].split("/")[0] in of_model():
            raise UserError(f"{override}: the model is that of trained={path}; beside it {own} are accepted")
    theirs = check_config(source.config(), f"trained={path}")
    named = source.provenance().get("choices")
    for key in of_model():
        if key not in theirs:
            raise UserError(f"trained={path}: its configuration has no {key}; that of a run is accepted")
        config[key] = theirs[key]
        choices.pop(key, None)
        if isinstance(named, dict) and isinstance(named.get(key), str):
            choices[key] = named[key]
    if "download" in config["data"]:
        config["data"]["download"] = False  # it would be to where the other run says
    config["trained"] = str(source.path)


def take_over(run: RunDirectory, config: dict, now: "Fingerprint") -> dict[str, Any]:
    """The checkpoint by which the other run reports, with this run's configuration in it.

    ``now``: of the data that this run will be measured on.

    Raises:
        UserError: it is gone, or cannot be read, or was trained on what would now validate or test it.
    """
    from triptych.data.fingerprint import HELD_OUT  # torch, here: the door adopts before it is imported
    from triptych.runs.changed import compare_data, say
    from triptych.runs.checkpoints import read_checkpoint

    source = RunDirectory(config["trained"])
    kept = read_checkpoint(source.reported())
    accepted = f"the data of trained={config['trained']} as they were are accepted"
    say(run, compare_data(now, kept["triptych"].get("data"), HELD_OUT, accepted))
    checkpoint = {key: kept[key] for key in ("state_dict", "callbacks", "global_step")}
    checkpoint["triptych"] = kept["triptych"] | {"config": config}
    return checkpoint
