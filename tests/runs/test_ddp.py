"""Two processes: the whole test set once, the figures of one process, one directory."""

import json

import pytest


@pytest.mark.slow
def test_two_processes_report_the_bound_of_one(door, root, tiny):
    figures = {}
    for devices in (1, 2):
        strategy = [] if devices == 1 else ["trainer.strategy=ddp"]
        done = door(
            "triptych.train",
            f"name=on{devices}",
            "logger=csv",
            f"trainer.devices={devices}",
            *strategy,
            *tiny,
        )
        assert done.returncode == 0, done.stderr
        figures[devices] = json.loads((root / "logs" / "runs" / f"on{devices}" / "summary.json").read_text())
    assert [figures[d]["world_size"] for d in (1, 2)] == [1, 2]
    assert len(list((root / "logs" / "runs").iterdir())) == 2
    for split in ("test", "val", "train"):
        one, two = figures[1][split]["bpd"], figures[2][split]["bpd"]
        assert one["n"] == two["n"]
        assert two["mean"] == pytest.approx(
            one["mean"], rel=1e-4
        )  # six steps of training, summed in another order
