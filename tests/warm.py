"""Imports and look-ups of every command, with which the server of forks starts."""

from importlib import import_module

from tests import references
from triptych.config.compose import compose_command
from triptych.run import provenance

for name in (
    "cli.train",
    "cli.evaluate",
    "cli.sample",
    "run.execute",
    "run.loggers",
    "study.study",
):
    import_module(f"triptych.{name}")
references.share()
provenance.git_commit(provenance.CLONE)
provenance.git_state(provenance.CLONE, "src", "configs")
for groups in ([], ["logger=csv"]):
    compose_command("train", groups)
