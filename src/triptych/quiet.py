"""Silence warnings of libraries that do not concern users."""

import logging
import warnings

MESSAGES = (
    ".*LeafSpec.*",  # Lightning 2.6 on torch 2.13
    ".*does not have many workers.*",  # our loaders index tensors in memory; a worker would only cost
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's is not
    ".*your `IterableDataset` has `__len__` defined.*",
    ".*dataloader is not resumable.*",  # ours follows from the step
    ".*`srun` command is available.*",
    ".*It is recommended to use .*sync_dist=True.*",  # our figures are of all processes when they are logged
    ".*Found .* module.s. in eval mode.*",
)


def quiet() -> None:
    """Silence them, and Lightning's tips."""
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
