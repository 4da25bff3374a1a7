"""TensorBoard's event files in the run's directory, written anew whenever the run goes on."""

import math
from pathlib import Path
from typing import Any

from triptych.runs.directory import RunDirectory
from triptych.runs.metrics import MetricsCsv
from triptych.training.follower import Follower, Rows, as_text

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents.*"


class TensorBoard(Follower):
    """Scalars under the names and steps of ``metrics.csv``, pictures, the configuration as hyperparameters.

    The files hold one history: those of an earlier execution are removed, since the table has their rows.
    Values are single precision, as TensorBoard has them.
    """

    title = "TensorBoard"

    def __init__(self, run: RunDirectory, table: MetricsCsv, every: float = 2.0):
        super().__init__(run, table, every)
        self._writer: Any = None
        self._since = self.began

    def start(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = self.run / FOLDER
        for file in folder.glob(EVENTS):
            file.unlink()
        self._writer = SummaryWriter(str(folder), flush_secs=5)
        plain = {
            k: v if isinstance(v, bool | int | float) else as_text(v) for k, v in self.parameters.items()
        }
        _, begin, _ = hparams(plain, {})  # TensorBoard finds out which metrics there are
        self._writer.file_writer.add_summary(begin)
        for at, path in self.drawn(step):
            self.take_picture("samples", path, at)

    def take(self, rows: Rows) -> None:
        for step, row in rows.items():
            for name, value in row.items():
                self._writer.add_scalar(name, value, step, walltime=self._since + row.get("time", 0.0))

    def take_picture(self, key: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self._writer.add_image(key, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def finish(self, ok: bool, final: dict[str, float], step: int) -> None:
        for name, value in final.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        if ok:
            from torch.utils.tensorboard.summary import hparams

            self._writer.file_writer.add_summary(hparams({}, {})[2])  # the session's end
        self._writer.close()
