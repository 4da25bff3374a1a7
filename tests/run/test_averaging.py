"""Averages of a run: which one is reported, chosen by validation or computed after the run."""

import pytest
import torch

from tests.refusal import refused
from tests.run.accidents import column
from tests.run.commands import evaluated
from triptych.callbacks.ema import EMA, combination_factors
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.models.denoiser_model import DenoiserModel
from triptych.run.averaging import averages, find_average, reported_weights
from triptych.run.execute import execute
from triptych.run.fit import check_averaging
from triptych.run.reopen import reopen
from triptych.run.untrusted import read_checkpoint

LENGTHS = ("callbacks.ema.sigma_rel=0.1", "callbacks.ema.others=[0.05,0.25]")


def last(run) -> str:
    return str(run / "checkpoints" / "last.ckpt")


def again(path: str, split: str, weights: str = "null") -> dict:
    return evaluated(path, f"split={split}", f"weights={weights}")


def test_every_ema_is_validated_and_only_reported_one_tested(prepared, monkeypatch):
    tested, elbo = [], BoundModel.test_step
    fitted, before = [], DenoiserModel.before_report

    def watched(self, batch, batch_idx):
        tested.append(self.test_loader.name)
        return elbo(self, batch, batch_idx)

    monkeypatch.setattr(BoundModel, "test_step", watched)
    monkeypatch.setattr(
        DenoiserModel, "before_report", lambda self: fitted.append(1) or before(self)
    )
    run = prepared(*LENGTHS, "samples.n=0")
    summary = execute(run)
    assert tested.count("test") == 1
    assert len(fitted) == 4, "its control once for each weights, whatever the splits"
    assert summary["averaging"]["reported"] == "sigma_rel_0.1"
    others = summary["averaging"]["val"]
    assert list(others) == ["raw", "sigma_rel_0.05", "sigma_rel_0.25"]
    for weights, figures in others.items():
        assert figures == again(last(run), "val", weights)
        assert figures["bpd"]["mean"] != summary["val"]["bpd"]["mean"]
    assert summary["val"] == again(last(run), "val") == again(last(run), "val", "sigma_rel_0.1")
    for weights, figures in others.items():  # whatever logger there is has them, too
        assert column(run, f"final/val_{weights}_bpd") == [pytest.approx(figures["bpd"]["mean"])]


def test_weights_chosen_selects_lowest_validation_bound(prepared):
    run = prepared(*LENGTHS, "weights=chosen", "samples.n=0")
    summary = execute(run)
    kept = averages(read_checkpoint(run / "checkpoints/last.ckpt"))
    bounds = {weights: again(last(run), "val", weights)["bpd"]["mean"] for weights in kept}
    best = min(bounds, key=bounds.__getitem__)
    assert best != "sigma_rel_0.1", "or the first one would pass for a choice"
    assert summary["averaging"]["reported"] == best and summary["weights"] == "chosen"
    assert set(summary["averaging"]["val"]) == {"raw", *bounds} - {best}
    assert summary["val"]["bpd"]["mean"] == bounds[best]
    assert summary["test"] == again(last(run), "test") == again(last(run), "test", best)
    follower = prepared(f"trained={run.path}", path="follower")
    assert execute(follower)["test"] == summary["test"]


def test_weights_chosen_before_choice_is_refused():
    ema = {"name": "sigma_rel_0.05", "average": {}, "others": {"sigma_rel_0.1": {}}}
    for weights, words in (
        ("chosen", "has not chosen"),
        ("sigma_rel_0.07", r"weights=sigma_rel_0\.07: not stored.*sigma_rel_0\.1"),
        (
            "sigma_rel_9",
            r"weights=sigma_rel_9: .* ema, raw, chosen, sigma_rel_0\.05, sigma_rel_0\.1",
        ),
    ):
        with pytest.raises(UserError, match=words):
            find_average({"callbacks": {"EMA": ema}, "triptych": {}, "global_step": 0}, weights)
    for weights, said in (("raw", "raw"), ("ema", "sigma_rel_0.05"), ("chosen", "sigma_rel_0.1")):
        about = {"config": {"weights": weights}, "chosen": "sigma_rel_0.1"}
        assert reported_weights({"callbacks": {"EMA": ema}, "triptych": about}) == said


def test_two_ema_callbacks_are_refused():
    """After a validation, the second one would restore the first one's average as the weights."""
    config, slow = {"weights": "ema", "checkpoint": "last"}, type("Slow", (EMA,), {})
    refused(
        lambda: check_averaging(config, [EMA(), slow(0.2)], True),
        "callbacks: several of them average",
        "keep one",
    )
    check_averaging(config | {"weights": "raw"}, [EMA(), slow(0.2)], True)
    check_averaging(config | {"trained": "a"}, [EMA(), slow(0.2)], True)


def test_missing_best_checkpoint_is_refused(finished):
    run = finished("checkpoint=best")
    (run / "summary.json").unlink()  # as if it had been killed before its end
    (run / "checkpoints" / "best.ckpt").unlink()
    refused(lambda: execute(run), "best.ckpt: no such file")


def test_checkpoint_best_uses_reported_weights(prepared):
    """The rate ruins the weights at the end, so their best step is not that of the average."""
    run = prepared(
        "weights=raw", "checkpoint=best", "callbacks.ema.sigma_rel=0.28", "trainer.max_steps=10",
        "trainer.val_check_interval=1", "optimizer.lr=0.05", "lr_schedule=constant", "samples.n=0",
    )  # fmt: skip
    summary = execute(run)
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")
    assert best["callbacks"]["Keep"]["best"] == pytest.approx(min(column(run, "val/bpd")))
    one = again(str(run / "checkpoints" / "best.ckpt"), "val", "raw")
    # The same weights with more draws of the noise are nearer to their own score than the other
    # weights.
    other = again(str(run / "checkpoints" / "best.ckpt"), "val", "ema")
    score = best["callbacks"]["Keep"]["best"]
    assert abs(one["bpd"]["mean"] - score) < 0.2 * abs(other["bpd"]["mean"] - score)
    assert summary["val"] == one


def test_post_hoc_ema_is_combination_of_snapshots(prepared):
    run = prepared("callbacks.ema.snapshots=3", "samples.n=0")
    execute(run)
    stored = [torch.load(path, weights_only=True) for path in sorted((run / "averages").iterdir())]
    known = {
        (s["step"], s["sigma_rel"][name]): x for s in stored for name, x in s["averages"].items()
    }
    assert [*known] == [(step, s) for step in (2, 4, 6) for s in (0.05, 0.1)]
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    for step in (
        4,
        6,
        6,
    ):  # of an earlier checkpoint, as the best may be: later snapshots are no part of it
        until = [of for of in known if of[0] <= step]
        found = find_average(checkpoint | {"global_step": step}, "sigma_rel_0.07", run.path)
        factors = dict(zip(until, combination_factors(until, step, 0.07), strict=True))
        for name in known[until[0]]:
            expected = sum(factor * known[of][name].double() for of, factor in factors.items())
            torch.testing.assert_close(found[name], expected.float())
        if step == 6:  # of a fit that ended after its last snapshot: its own averages stand for one
            (run / "averages" / "000000006.pt").unlink(missing_ok=True)
    for name, value in reopen(last(run), "sigma_rel_0.07").model.named_parameters():
        assert torch.equal(value, found[name])
    refused(lambda: find_average(checkpoint, "sigma_rel_0.07", run / "samples"), "not stored")


@pytest.mark.parametrize("name", ["EMADrift", "EMA"])
def test_averages_ignores_state_of_other_callbacks(name):
    """A user's class may have any name; one that inherits from ours keeps its averages."""
    assert averages({"callbacks": {name: {"drift": 1.0}}}) == {}
    own = type("Slow", (EMA,), {})()
    assert averages({"callbacks": {own.state_key: own.state_dict()}}) == {own.name: {}}
