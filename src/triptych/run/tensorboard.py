"""TensorBoard's event files in the run's directory."""

from collections.abc import Collection
from pathlib import Path

from pytorch_lightning.loggers import TensorBoardLogger

from triptych.run.directory import RunDirectory
from triptych.run.log_content import flat_numbers, parameters
from triptych.run.result import Result


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, with the configuration as hyperparameters, and pictures.

    Of a run that goes on TensorBoard's readers drop what earlier files have after ``step``.
    """

    title, pauses = "TensorBoard", ()

    def __init__(self, run: RunDirectory, step: int):
        super().__init__(str(run.path), "tensorboard", version="", purge_step=step + 1, flush_secs=5)
        from torch.utils.tensorboard.summary import hparams

        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in parameters(run).items()}
        # Lightning's log_hyperparams wants all metrics beforehand; TensorBoard looks for them itself
        self.experiment.file_writer.add_summary(hparams(plain, {})[1])

    def log_picture(self, key: str, path: Path, step: int) -> None:
        """Log a picture of a step."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self.experiment.add_image(key, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def finish(self, summary: Result | None, step: int, logged: Collection[str]) -> None:
        """Log the figures of ``summary`` that are not ``logged`` yet, and end."""
        self.log_metrics(flat_numbers(summary, logged), step)
        self.experiment.close()
