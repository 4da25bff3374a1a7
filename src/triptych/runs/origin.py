"""What a run goes on from: nothing, its own newest checkpoint, the model or the weights of another run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.data.base import DataModule
from triptych.data.fingerprint import fingerprint
from triptych.runs.changed import check_data, remember
from triptych.runs.checkpoints import LAST, newest_readable, read_checkpoint
from triptych.runs.directory import RunDirectory, write_atomic
from triptych.runs.initial import read_initial
from triptych.runs.processes import rank
from triptych.runs.trained import take_over


@dataclass(frozen=True)
class Origin:
    """Where a run stands when it starts.

    Attributes:
        start: the checkpoint to go on from, and the step that it was taken at.
        taken: with ``trained``, the other run's checkpoint.
        initial: at a first start with ``init_from``, the checkpoint that the weights are taken from.
        data: what checkpoints keep of the data, with every item that the model is trained on.
    """

    start: Path | None
    step: int
    taken: dict[str, Any] | None
    initial: dict[str, Any] | None
    data: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """The data as the record has them: fingerprint, split, sizes."""
        return {key: value for key, value in self.data.items() if key != "items"}


def find_origin(run: RunDirectory, config: dict, data: DataModule) -> Origin:
    """Look at what lies in ``run``.

    Raises:
        UserError: what the model was trained on would now validate or test it.
    """
    start = newest_readable(run.checkpoints())
    kept = read_checkpoint(start) if start else None
    if start is not None and start.name != LAST and rank() == 0:
        write_atomic(start.with_name(LAST), start.read_bytes())  # it is the last that counts
    now = fingerprint(data)
    taken = take_over(run, config, now) if config.get("trained") else None
    seen = check_data(run, now, kept)
    if taken is not None:
        seen = remember(now, taken["triptych"].get("data"))
    initial = read_initial(config, now) if start is None else None
    if initial is not None:  # it was trained on theirs, too
        seen |= {"items": remember(now, initial["triptych"].get("data"))["items"]}
    return Origin(start, kept["global_step"] if kept else 0, taken, initial, seen)
