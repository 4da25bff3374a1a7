"""Draw samples: where they are written."""

import torch

from triptych.cli.sample import save_tensor


def test_samples_that_are_there_are_not_overwritten(tmp_path):
    for name in ("drawn", "drawn-2", "drawn-3"):
        (tmp_path / name).mkdir()  # a folder without samples is taken
        assert save_tensor(torch.ones(2), tmp_path / "drawn") == tmp_path / name
