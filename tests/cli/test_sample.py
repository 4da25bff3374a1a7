"""Draw samples: where they are written."""

from triptych.cli.sample import free_folder


def test_samples_that_are_there_are_not_overwritten(tmp_path):
    out = tmp_path / "drawn"
    assert free_folder(out) == out
    for name in ("drawn", "drawn-2"):
        (tmp_path / name).mkdir()
        assert free_folder(out) == tmp_path / name, "a folder without samples is taken"
        (tmp_path / name / "samples.pt").touch()
    assert free_folder(out) == tmp_path / "drawn-3"
