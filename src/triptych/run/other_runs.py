"""Other runs that a configuration refers to: guides, classifiers, earlier stages, a teacher."""

from typing import Any

from triptych.config.identity import data_identity, describe
from triptych.data.base import DataModule
from triptych.diffusion.denoiser import Denoiser
from triptych.errors import UserError
from triptych.models.classifier import Classifier
from triptych.models.condition_bits import check_parts_were_dropped, undropped_parts
from triptych.records import Config
from triptych.run.drawing import condition_parts_read
from triptych.run.experiment import Experiment
from triptych.run.reopen import refuse_cascade, reopen


class OtherRuns:
    """The other runs that a configuration names, each opened on first request and then cached.

    A run is opened at most twice: as a model of the same data, and as a stage of a cascade.
    """

    def __init__(self, config: Config):
        self.config = config
        self._opened: dict[tuple[str, bool], Experiment] = {}

    def open(self, key: str, path: str | None, as_stage: bool = False) -> Experiment:
        """Open a run of the same data or, with ``as_stage``, a run that draws part of a condition.

        ``key`` is the configuration key that names it, ``path`` the value.
        """
        if path is None:
            raise UserError(
                f"{key}=null: needs a checkpoint; pass one, as guide=.../checkpoints/last.ckpt"
            )

        def adjust_config(other: Config) -> None:
            if as_stage:
                refuse_cascade(other)
            else:
                self._use_own_data_folder(other)
            other["threads"] = self.config["threads"]

        if (path, as_stage) not in self._opened:
            opened = reopen(str(path), adjust=adjust_config, key=key)
            opened.model.requires_grad_(False)
            self._opened[path, as_stage] = opened
        return self._opened[path, as_stage]

    def _use_own_data_folder(self, other: Config) -> None:
        """Check that another run has the same data, and set its data folder to this run's."""
        data = self.config["data"]
        if data_identity(other["data"]) != data_identity(data):
            raise UserError(
                f"trained on {describe(other['data'])}; pass a run trained on {describe(data)}"
            )
        if "root" in data:
            other["data"]["root"] = data["root"]

    def classifier(self, key: str, path: str | None, noisy: bool) -> Classifier:
        """Open a classifier of the same data, trained on noisy (``noisy``) or clean images."""
        model = self.open(key, path).model
        if not isinstance(model, Classifier):
            raise UserError(
                f"{key}={path}: not a classifier; pass a checkpoint of model=classifier"
            )
        if model.noise != noisy:
            raise UserError(
                f"{key}={path}: needs a classifier trained with model.noise={str(noisy).lower()}"
            )
        return model


def set_teacher(config: Config, model: Any, data: DataModule, other_runs: OtherRuns) -> None:
    """Open the other run that is the teacher of ``model``, if any, and pass it to the objective."""
    objective = config.get("objective") or {}
    if objective.get("teacher") and not config.get("trained"):
        model.objective.teacher = open_teacher(objective["teacher"], model, data, other_runs)


def open_teacher(path: str, model: Any, data: DataModule, other_runs: OtherRuns) -> Denoiser:
    """Return another run's denoiser as the teacher of ``model``; UserError if it is unsuitable."""
    where = f"objective.teacher={path}"
    if model.of_latents:
        raise UserError(f"{where}: distillation is not supported for latents; pass null")
    opened = other_runs.open("objective.teacher", path)
    teacher = opened.model.denoiser
    if not isinstance(teacher, Denoiser) or not isinstance(model.denoiser, Denoiser):
        raise UserError(f"{where}: has no denoiser; pass a diffusion model")
    check_process(where, teacher, model.denoiser)
    given = undropped_parts(model.label_dropout, condition_parts_read(model, data))
    absent = [name for name in condition_parts_read(opened.model, opened.data) if name not in given]
    check_parts_were_dropped(where, opened.model.label_dropout, absent)
    return teacher


def check_process(where: str, other: Any, denoiser: Any) -> None:
    """Raise UserError unless another run's model has the same noise process as ``denoiser``."""
    if str(other.process) != str(denoiser.process):
        raise UserError(
            f"{where}: its process {other.process} differs from the model's, {denoiser.process}; "
            "pass a model with the same process"
        )
