"""Note what limits all settings alike: a warm-up that never ends."""

from collections.abc import Iterator, Sequence

from triptych.config.check import warm_up_line
from triptych.run.parsing import to_int
from triptych.run.read import Run


def warm_ups(runs: Sequence[Run]) -> Iterator[str]:
    """Note fits whose learning rate never reached its value."""
    lines = dict[str, None]()
    for run in runs:
        warmup = to_int(run.config.get("lr_schedule.warmup_steps"))
        if warmup and run.steps and run.parameters and run.config.get("trained", "null") == "null":
            lines[warm_up_line(warmup, run.steps)] = None
    yield from (f"{line}." for line in lines if line)
