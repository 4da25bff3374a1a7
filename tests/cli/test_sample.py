"""Draw samples: where they are written."""

import errno

import pytest
import torch

from triptych.cli.sample import free_folder, save_tensor
from triptych.errors import StorageError


def test_samples_that_are_there_are_not_overwritten(tmp_path):
    out = tmp_path / "drawn"
    assert free_folder(out) == out
    for name in ("drawn", "drawn-2"):
        (tmp_path / name).mkdir()
        assert free_folder(out) == tmp_path / name, "a folder without samples is taken"
        (tmp_path / name / "samples.pt").touch()
    assert free_folder(out) == tmp_path / "drawn-3"


def test_a_tensor_that_is_not_written_whole_is_not_there(tmp_path, monkeypatch):
    """Nor does it take the place of one that was drawn meanwhile."""

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    assert save_tensor(torch.ones(2), tmp_path / "drawn") == tmp_path / "drawn"
    assert torch.load(tmp_path / "drawn" / "samples.pt", weights_only=True)["x"].sum() == 2
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="samples.pt: cannot be written"):
        save_tensor(torch.ones(2), tmp_path / "drawn")
    assert not [*(tmp_path / "drawn-2").iterdir()]
