"""Averages of a run: which is reported and which compared, chosen by validation, made after the run."""

import numpy as np
import pytest
import torch

from tests.run.accidents import rows
from triptych.callbacks.ema import EMA
from triptych.callbacks.ema_profiles import combination, exponent
from triptych.cli.evaluate import evaluate_composed
from triptych.config.compose import compose_command, without_hydra
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.run.checkpoints import averages, read_checkpoint
from triptych.run.execute import execute
from triptych.run.reopen import reopen

LENGTHS = ("callbacks.ema.sigma_rel=0.1", "callbacks.ema.others=[0.05,0.25]")


def last(run) -> str:
    return str(run / "checkpoints" / "last.ckpt")


def again(path: str, split: str, weights: str | None = None) -> dict:
    """What triptych-evaluate says."""
    asked = [f"ckpt='{path}'", f"split={split}", f"weights={weights or 'null'}"]
    return evaluate_composed(without_hydra(compose_command("evaluate", asked)))


def test_each_length_is_validated_and_the_test_set_read_for_the_reported_one_alone(prepared, monkeypatch):
    tested, elbo = [], BoundModel.test_step

    def watched(self, batch, batch_idx):
        tested.append(self.tested.name)
        return elbo(self, batch, batch_idx)

    monkeypatch.setattr(BoundModel, "test_step", watched)
    run = prepared(*LENGTHS, "samples.n=0")
    summary = execute(run)
    assert tested.count("test") == 1
    assert summary["averaging"]["reported"] == "sigma_rel_0.1"
    others = summary["averaging"]["val"]
    assert list(others) == ["raw", "sigma_rel_0.05", "sigma_rel_0.25"]
    for weights, figures in others.items():
        assert figures == again(last(run), "val", weights)
        assert figures["bpd"]["mean"] != summary["val"]["bpd"]["mean"]
    assert summary["val"] == again(last(run), "val") == again(last(run), "val", "sigma_rel_0.1")
    for weights, figures in others.items():  # whatever logger there is has them, too
        [logged] = [row[name] for row in rows(run) if row[name := f"final/val_{weights}_bpd"]]
        assert float(logged) == pytest.approx(figures["bpd"]["mean"])


def test_chosen_is_the_lowest_by_validation_and_the_checkpoint_remembers(prepared):
    run = prepared(*LENGTHS, "weights=chosen", "samples.n=0")
    summary = execute(run)
    bounds = {
        w: again(last(run), "val", w)["bpd"]["mean"]
        for w in averages(read_checkpoint(run / "checkpoints/last.ckpt"))
    }
    best = min(bounds, key=bounds.__getitem__)
    assert best != "sigma_rel_0.1", "or the first one would pass for a choice"
    assert summary["averaging"]["reported"] == best and summary["weights"] == "chosen"
    assert set(summary["averaging"]["val"]) == {"raw", *bounds} - {best}
    assert summary["val"]["bpd"]["mean"] == bounds[best]
    assert summary["test"] == again(last(run), "test") == again(last(run), "test", best)
    follower = prepared(f"trained={run.path}", path="follower")
    assert execute(follower)["test"] == summary["test"]


def test_a_run_has_chosen_before_chosen_weights_are_asked_for(finished):
    run = finished()
    with pytest.raises(UserError, match="has not chosen"):
        reopen(last(run), "chosen")
    with pytest.raises(UserError, match=r"weights=sigma_rel_0\.07: not kept.*sigma_rel_0\.1"):
        reopen(last(run), "sigma_rel_0.07")
    with pytest.raises(
        UserError,
        match=r"weights=sigma_rel_9: must be one of ema, raw, chosen, sigma_rel_0\.05, sigma_rel_0\.1",
    ):
        reopen(last(run), "sigma_rel_9")


def test_best_is_decided_by_the_weights_that_are_reported(prepared):
    """With a rate that ruins the weights at the end, their best step is not the average's."""
    run = prepared(
        "weights=raw", "checkpoint=best", "callbacks.ema.sigma_rel=0.28", "trainer.max_steps=10",
        "trainer.val_check_interval=1", "optimizer.lr=0.05", "lr_schedule=constant", "samples.n=0",
    )  # fmt: skip
    summary = execute(run)
    curve = [float(row["val/bpd"]) for row in rows(run) if row["val/bpd"]]
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")
    assert best["callbacks"]["Keep"]["best"] == pytest.approx(min(curve))
    one = again(str(run / "checkpoints" / "best.ckpt"), "val", "raw")
    # the same weights under more draws of the noise: nearer to its own score than the other weights' are
    other = again(str(run / "checkpoints" / "best.ckpt"), "val", "ema")
    score = best["callbacks"]["Keep"]["best"]
    assert abs(one["bpd"]["mean"] - score) < 0.2 * abs(other["bpd"]["mean"] - score)
    assert summary["val"] == one


def trajectory(prepared, monkeypatch, *overrides: str):
    """A run and each step's parameters, in double."""
    steps, update = [], EMA.on_train_batch_end

    def recording(self, trainer, module, *more):
        update(self, trainer, module, *more)
        steps.append({n: p.detach().double().clone() for n, p in module.named_parameters()})

    monkeypatch.setattr(EMA, "on_train_batch_end", recording)
    run = prepared(*overrides)
    execute(run)
    return run, steps


def profile(n: int, step: int, sigma_rel: float) -> np.ndarray:
    """The weights of steps 1 ... n in the average at ``step``."""
    edges = (np.minimum(np.arange(n + 1), step) / step) ** (exponent(sigma_rel) + 1)
    return np.diff(edges)


def test_an_average_made_after_the_run_is_the_direct_one(prepared, monkeypatch):
    """Within what its profile misses of the direct one's, plus the rounding of single precision.

    sum_i a_i theta_i - sum_i p_i theta_i = sum_i (a_i - p_i) (theta_i - theta_n), as both profiles sum to 1:
    no parameter is further off than sum |a - p| times its largest way to its last value. A stored average
    is a chain of n roundings: eps/2 each of at most its size, and factors x scale them.
    """
    n, pairs = 40, (0.05, 0.1)
    run, steps = trajectory(
        prepared, monkeypatch, f"trainer.max_steps={n}", "trainer.val_check_interval=40",
        "callbacks.ema.snapshots=10", "samples.n=0",
    )  # fmt: skip
    for sigma_rel in (0.07, 0.12, 0.05):
        check_average(run, steps, n, pairs, sigma_rel)


def check_average(run, steps, n: int, pairs: tuple[float, ...], sigma_rel: float) -> None:
    stored = [(t, s) for t in range(4, n + 1, 4) for s in pairs]
    factors = combination(stored, n, sigma_rel)
    mixed = sum(x * profile(n, t, s) for x, (t, s) in zip(factors, stored, strict=True))
    direct = profile(n, n, sigma_rel)
    missed = np.abs(mixed - direct).sum()
    assert missed < 0.05
    weights = f"sigma_rel_{sigma_rel}" if sigma_rel not in pairs else f"sigma_rel_{sigma_rel}0"
    model, told_apart = reopen(last(run), weights).model, False
    for name, found in model.named_parameters():
        path = torch.stack([step[name] for step in steps])
        expected = torch.tensordot(torch.from_numpy(direct), path, 1)
        way, size = (path - path[-1]).abs().amax(0), path.abs().amax(0)
        rounding = np.finfo(np.float32).eps * n * np.abs(factors).sum() * size
        assert ((found.detach().double() - expected).abs() <= missed * way + rounding + 1e-12).all(), name
        near = torch.tensordot(torch.from_numpy(profile(n, n, 1.25 * sigma_rel)), path, 1)
        told_apart |= ((near - expected).abs() > missed * way + rounding).any().item()
    assert told_apart, "the tolerance lets a length of a quarter more pass"
