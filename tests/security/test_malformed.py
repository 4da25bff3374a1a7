"""Malformed content is refused in one line: checkpoints of another shape, endless folders."""

import os
import shutil
from typing import Any

import pytest
import torch

from tests.refusal import one_line, refused
from tests.run.accidents import stopped
from triptych.data.layout import list_images
from triptych.errors import UserError
from triptych.run.checkpoints import newest_readable
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.read import find_runs
from triptych.run.reopen import reopen
from triptych.run.untrusted import read_checkpoint
from triptych.study.results_page import find_papers

WEIGHT = "denoiser.network.last.weight"
RING = (
    "data=ring",
    "denoiser=mlp",
    "denoiser.network.width=8",
    "data.val_size=20",
    "data.test_size=20",
)
# where in a checkpoint, and what stands there instead; None: nothing
# Parts that only the weights' reader needs.
OPENED = [
    ("callbacks", "EMA", 5),
    ("callbacks", "EMA", "name", ["x"]),
    ("callbacks", "EMA", "others", ["x"]),
    ("callbacks", "EMA", "average", WEIGHT, "x"),
    ("state_dict", 5),
]
RESUMED = [
    ("state_dict", WEIGHT, None),
    (
        "state_dict",
        "denoiser.network.added.weight",
        torch.zeros(2),
    ),  # a layer that the code has no more
    ("state_dict", WEIGHT, torch.zeros(3, 3)),
    ("loops", "fit_loop", None),
    ("optimizer_states", [{"state": "x", "param_groups": 3}]),
    ("optimizer_states", None),
    ("lr_schedulers", [{"last_epoch": "x"}]),
    ("callbacks", "EMA", "others", None),
    ("callbacks", "Keep", "seconds", "x"),
    ("callbacks", "EMA", "updates", "x"),
    ("callbacks", "EMA", "average", WEIGHT, None),
    ("triptych", "data", 5),
]
TRAINED = [
    ("global_step", None),
    ("callbacks", None),
    ("callbacks", "EMA", "others", {"sigma_rel_0.1": "x"}),
    ("state_dict", WEIGHT, "x"),
    ("triptych", "data", {"fingerprint": 1, "split": "x", "n": 5}),
]
# Every reader of a checkpoint needs these parts.
READ = [
    ("global_step", "x"),
    ("triptych", "config", ["x"]),
    ("callbacks", ["x"]),
    ("triptych", "draws", "x"),
    ("triptych", "draws", ["blocks"]),
]


def change(file, *place_and_value: Any) -> None:
    *place, name, value = place_and_value
    checkpoint = torch.load(file, weights_only=True)
    node = checkpoint
    for key in place:
        node = node[key]
    if value is None:
        del node[name]
    else:
        node[name] = value
    torch.save(checkpoint, file)


@pytest.fixture
def resumable(prepared):
    return stopped(prepared(*RING))


@pytest.mark.parametrize("changed", RESUMED, ids=lambda changed: ".".join(map(str, changed[:-1])))
def test_resume_refuses_malformed_checkpoint(resumable, changed):
    checkpoint = resumable.checkpoints()[-1]
    change(checkpoint, *changed)
    before = checkpoint.read_bytes()
    refused(lambda: execute(resumable), str(checkpoint))
    assert checkpoint.read_bytes() == before


@pytest.fixture
def ended(finished, root):
    """Return a copy of a finished run's checkpoint, which a test may damage."""
    return shutil.copy(finished(*RING).path / "checkpoints" / "last.ckpt", root / "moved.ckpt")


@pytest.mark.parametrize("changed", TRAINED, ids=lambda changed: ".".join(map(str, changed[:-1])))
def test_init_from_malformed_checkpoint_fails_only_with_user_error(prepared, ended, changed):
    change(ended, *changed)
    try:
        execute(prepared(*RING, f"init_from={ended}", path="next"))
    except UserError as error:
        one_line(str(error), str(ended))


@pytest.mark.parametrize("changed", READ, ids=lambda changed: ".".join(map(str, changed)))
def test_read_checkpoint_refuses_malformed_structure(ended, changed, capsys):
    change(ended, *changed)
    refused(lambda: read_checkpoint(ended, "guide"), f"guide={ended}: not a complete checkpoint")
    refused(
        lambda: newest_readable([ended]), "not a complete checkpoint"
    )  # to begin anew would overwrite it
    assert not capsys.readouterr().err


@pytest.mark.parametrize("changed", OPENED, ids=lambda changed: ".".join(map(str, changed)))
def test_weights_of_another_shape_are_refused_in_one_line(ended, changed):
    change(ended, *changed)
    one_line(refused(lambda: reopen(str(ended), key="guide")), f"guide={ended}: ")


def test_reopen_refuses_ema_with_missing_weight(ended):
    change(ended, "callbacks", "EMA", "average", WEIGHT, None)
    refused(lambda: reopen(str(ended)), f"the average lacks {WEIGHT}")
    assert reopen(str(ended), "raw")


@pytest.fixture
def deep(root):
    """Make 1,200 nested folders, more than Python's recursion limit."""
    here = os.getcwd()
    os.mkdir(root / "deep")
    os.chdir(root / "deep")
    for _ in range(1200):
        os.mkdir("a")
        os.chdir("a")
    os.chdir(here)
    yield root / "deep"
    os.system(f"rm -r '{root / 'deep'}'")  # which pytest's own removal would fail at


def test_deeply_nested_folders_are_supported(deep):
    assert find_runs(deep) == [] and list_images(deep) == [] and find_papers([deep]) == []
    RunDirectory(deep).remove_temporary_files()
