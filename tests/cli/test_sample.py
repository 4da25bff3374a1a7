"""Where samples are written."""

import os
import resource

import pytest
import torch

from triptych.cli.sample import save_tensor
from triptych.errors import StorageError


def test_save_tensor_does_not_overwrite_existing_samples(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "samples.png").touch()
    assert save_tensor(torch.ones(2), tmp_path / "pictures") == tmp_path / "pictures-2"
    for name in ("drawn", "drawn-2", "drawn-3"):
        (tmp_path / name).mkdir()  # a folder without samples is taken
        assert save_tensor(torch.ones(2), tmp_path / "drawn") == tmp_path / name


def test_save_tensor_does_not_overwrite_samples_of_concurrent_command(tmp_path, monkeypatch):
    def link(part, path, link=os.link):
        if not (theirs := tmp_path / "drawn" / "samples.pt").exists():
            theirs.write_bytes(b"theirs")
        link(part, path)

    monkeypatch.setattr(os, "link", link)
    assert save_tensor(torch.ones(2), tmp_path / "drawn") == tmp_path / "drawn-2"
    assert (tmp_path / "drawn" / "samples.pt").read_bytes() == b"theirs"
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["samples.pt"]


def test_save_tensor_leaves_no_partial_file(tmp_path):
    """As on a full disk, where torch itself would raise a RuntimeError."""
    assert save_tensor(torch.ones(2), tmp_path / "drawn") == tmp_path / "drawn"
    assert torch.load(tmp_path / "drawn" / "samples.pt", weights_only=True)["x"].sum() == 2
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match="samples.pt: cannot be written"):
            save_tensor(torch.ones(2000), tmp_path / "drawn")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [*(tmp_path / "drawn-2").iterdir()]
