"""What each key of a configuration is to a run: the one table that names, resuming and reports read.

The longest pattern that fits a key decides. A key that the table does not have is identity: one that is added
later shows as an axis of a report, and refuses a directory that another value has made.

    identity   changes the result: an axis of a comparison
    drawing    decided after a model is trained, how samples are drawn and measured: an axis
    split      which items train and validate: an axis, as the data and the test set are the same
    data       which data there are: runs that differ in it are not compared
    judged     which of them test: neither are these, but a guide or classifier may differ in it
    path       where data or runs happen to lie; what lies there has a fingerprint
    loading    how data reach memory: changes nothing, or follows from another key
    machine    on what it runs: the result is the same but for the last digits
    reporting  how a run is watched
    output     where runs are written
    label      names for what other keys say
    seed       pairs the runs of two settings
    start      how this start treats its directory, or for how long a sweep goes on
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

ROLES = {
    "data": "data",
    "data.batch_size": "identity",
    "data.train_size": "split",
    "data.val_size": "split",
    "data.val_fraction": "split",
    "data.test_size": "judged",
    "data.test_fraction": "judged",
    "data.data_seed": "judged",
    "data.root": "path",
    "data.cache": "loading",
    "data.eval_batch_size": "loading",
    "data.seed": "loading",  # of the order of training: the run's own
    "data.num_workers": "loading",
    "data.pin_memory": "loading",
    "data.download": "loading",
    "sampler": "drawing",
    "guidance": "drawing",
    "guide": "drawing",
    "threshold": "drawing",
    "samples": "drawing",
    "measures": "drawing",
    "threads": "machine",
    "trainer.accelerator": "machine",
    "trainer.devices": "machine",
    "trainer.num_nodes": "machine",
    "trainer.strategy": "machine",
    "trainer.benchmark": "machine",
    "trainer.log_every_n_steps": "reporting",
    "logger": "reporting",
    "tags": "reporting",
    "optimized_metric": "reporting",
    "hydra": "reporting",
    "paths": "path",
    "paths.root_dir": "output",
    "paths.log_dir": "output",
    "name": "label",
    "ablation": "label",
    "experiment": "label",
    "hparams_search": "label",
    "local": "reporting",
    "seed": "seed",
    "force": "start",
    "retry": "start",
    "resume": "start",
    "until": "start",
    "max_seeds": "start",
    "equal_within": "start",
}
AXES = {"identity", "drawing", "split"}
# the same directory with any value of these: they say how to run, not what
NOT_IN_NAMES = {"output", "label", "seed", "start"}


@cache
def role(key: str) -> str:
    """The role of a dotted key, or of a group of choices."""
    parts = key.replace("/", ".").split(".")
    fitting = (ROLES.get(".".join(parts[:n])) for n in range(len(parts), 0, -1))
    return next(filter(None, fitting), "identity")


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a plain configuration with its value; lists and empty groups are values."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def data_identity(data: dict) -> dict[str, Any]:
    """What a ``data`` configuration says of the distribution itself."""
    return {key: value for key, value in leaves(data) if role(f"data.{key}") == "data"}


def describe(data: dict) -> str:
    """A data configuration in a few words: the class's name and what it was told."""
    told = ", ".join(f"{k}={v}" for k, v in data_identity(data).items() if k[0] != "_")
    name = data["_target_"].rpartition(".")[2]
    return f"{name}({told})"[:120]
