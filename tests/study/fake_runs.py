"""Fake run directories for reports: the figures are given, and nothing is trained."""

from __future__ import annotations

import itertools
import json
import math
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from triptych.study.sweep import SweepHook
from triptych.study.sweep_plan import Reservation

BEGIN = datetime(2025, 1, 1, tzinfo=UTC)

TARGETS = {"levels": 1.90, "v": 2.09, "epsilon": 2.14, "score": 2.50, "x0": 2.45}


def make_run(root: Path, objective: str, seed: int, bound: float, **extra: Any) -> Path:
    """Make a finished run.

    `extra`: data, measure, choices, overrides, items, or any key of summary.json.
    """
    by_item = extra.pop("items", None)
    overrides = extra.pop("overrides", [f"objective={objective}", f"seed={seed}"])
    measure, data = extra.pop("measure", "bpd"), extra.pop("data", "digits")
    n = 297 if by_item is None else len(by_item)
    choices = {"data": data, "objective": objective, "schedule": "linear", "denoiser": "resnet"}
    choices |= {"model": "diffusion"} | extra.pop("choices", {})
    run = start_run(root, objective, seed, overrides=overrides, choices=choices)
    summary = {
        "schema": 1, "status": "finished", "name": "objectives", "overrides": overrides, "choices": choices,
        "seed": seed, "parameters": 123456, "steps": 800, "seconds": {"fit": 41.2, "test": 3.1},
        "device": "cpu", "world_size": 1, "weights": "ema", "test": metrics(bound, measure, n),
        "val": metrics(bound - 0.01, measure), "train": metrics(bound - 0.06, measure),
        "baselines": {"uniform": {"mean": 4.5, "n": 297}, "histogram": {"mean": 2.71828, "n": 297}},
        "samples": "samples/final.png", "unknown_key": {"ignored": [1]},
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary | extra))
    if by_item is not None:
        write_items(run, bound + np.asarray(by_item) - np.mean(by_item))
    return run


def make_runs(root: Path, table: dict[str, dict[int, float]], **extra: Any) -> Path:
    """Make finished runs of {objective: {seed: bound}}."""
    for objective, bounds in table.items():
        for seed, bound in bounds.items():
            make_run(root, objective, seed, bound, **extra)
    return Path(root)


def edit(file: Path, **keys: Any) -> None:
    """Set keys of a JSON file; create the file if it does not exist."""
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | keys))


def write_items(run: Path, total: np.ndarray, index: np.ndarray | None = None) -> None:
    """Write items.npz as a run does at its end: the bound of each test item and its parts."""
    parts = {
        "prior": 0 * total + 0.002,
        "reconstruction": 0.11 * total,
        "diffusion": 0.89 * total - 0.002,
    }
    index = np.arange(len(total)) if index is None else index
    np.savez(run / "items.npz", index=index, total=total, draw_variance=0 * total + 1e-4, **parts)


def start_run(
    root: Path, objective: str, seed: int, overrides: list[str], choices: dict[str, str]
) -> Path:
    """Make a run that has started, with config and provenance alone."""
    run = Path(root) / ",".join(overrides).replace("/", "-")[:80]
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text(f"objective: {{name: {objective}}}\nseed: {seed}\n")
    provenance = {
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "packages": {"torch": "2.13.0"},
        "command": ["triptych-train", "-m", "ablation=objectives"],
        "executions": [{"host": "box", "device": "cpu"}],
        "overrides": overrides, "choices": choices, "started": (BEGIN + timedelta(0, seed)).isoformat(),
    }  # fmt: skip
    (run / "provenance.json").write_text(json.dumps(provenance))
    return run


def running(
    root: Path,
    objective: str,
    seed: int,
    step: int = 120,
    updated: float | None = None,
    **choices: str,
) -> Path:
    """Make a run under way, with its progress but without a summary."""
    choices = {"data": "digits", "objective": objective} | choices
    run = start_run(root, objective, seed, [f"objective={objective}", f"seed={seed}"], choices)
    progress = {"stage": "fit", "step": step, "max_steps": 800, "updated": updated or time.time()}
    (run / "progress.json").write_text(json.dumps(progress))
    return run


def sweep_hook(root: Path, **config: Any) -> SweepHook:
    """Return a sweep's hook as Hydra sets it up, without cells; it plans none."""
    hook, of_names = SweepHook(), {"config": {"override_dirname": {"exclude_keys": []}}}
    node = {"sweep": {"dir": str(root)}, "overrides": {"hydra": []}, "job": of_names}
    hook.root, hook.config = root, OmegaConf.create(config | {"hydra": node})
    hook.cells, hook.facts, hook.reservation, hook.plan = [], {}, Reservation(root), lambda jobs: {}
    return hook


def failed(root: Path, objective: str, seed: int, error: str) -> Path:
    """Make a run that ended in an error."""
    overrides = [f"objective={objective}", f"seed={seed}"]
    run = start_run(root, objective, seed, overrides, {"data": "digits", "objective": objective})
    summary = {
        "schema": 1,
        "status": "failed",
        "overrides": overrides,
        "seed": seed,
        "error": error,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def diverged(root: Path, objective: str, seed: int) -> Path:
    """Make a run whose loss was not finite."""
    run = failed(root, objective, seed, f"diverged at step {seed}: the loss is not finite")
    edit(run / "summary.json", status="diverged", step=seed)
    return run


def metrics(bound: float, measure: str = "bpd", n: int = 297) -> dict[str, dict[str, float]]:
    """Return a bound with parts that sum to it."""
    parts = {
        "": bound,
        "_prior": 0.002,
        "_reconstruction": 0.11 * bound,
        "_diffusion": 0.89 * bound - 0.002,
    }
    return {measure + part: {"mean": mean, "stderr": 0.018, "n": n} for part, mean in parts.items()}


def sweep(
    root: Path,
    targets: dict[str, float] | None = None,
    seeds: tuple[int, ...] = (1, 2, 3),
    noise=0.004,
    items: bool = False,
) -> Path:
    """A finished sweep with curves, histories and sample grids that look like the real thing.

    `items`: with bounds by item, most of whose spread all settings share.
    """
    random = np.random.default_rng(0)
    targets = TARGETS if targets is None else targets
    hard = np.random.default_rng(1).normal(size=297) * 0.3
    luck = {seed: random.normal() * 0.02 for seed in seeds}
    gamma = np.linspace(-7.65, 5.65, 20)
    for k, (objective, target) in enumerate(targets.items()):
        for seed in seeds:
            bound = target + luck[seed] + random.normal() * noise
            # The error is small at high noise, where the latent is the noise itself.
            mse = (0.95 / (1 + np.exp(1.1 * (gamma + 1.5)))) * (target - 1.2) + 0.002
            mse *= np.exp(0.2 * k * np.tanh(gamma / 4)) * np.exp(random.normal(size=20) * 0.03)
            weight = {"x0": np.exp(-gamma), "v": 1 + np.exp(-gamma)}.get(objective, np.ones(20))
            run = make_run(
                root, objective, seed, bound,
                noise_levels={"gamma": list(gamma), "epsilon_mse": list(mse), "stderr": list(mse * 0.03)},
                weighting={"gamma": list(gamma), "effective": list(weight)},
                items=hard * (1 + 0.1 * k) + np.random.default_rng(seed + 100 * k).normal(size=297) * 0.02
                if items else None,
            )  # fmt: skip
            write_history(run, bound)
            picture(run / "samples" / "final.png", 10 * k + seed)
    return Path(root)


def write_history(run: Path, bound: float) -> None:
    """Write a wide, sparse metrics.csv that ends at the bound."""
    rows = ["step,train/loss,train/grad_norm,val/bpd,time"]
    for step in range(0, 801, 10):
        rows.append(f"{step},{3 * math.exp(-step / 200) + bound:.4f},0.5,,{step / 20}")
        if step and step % 100 == 0:
            rows.append(f"{step},,,{bound + 3.5 * math.exp(-step / 130):.5f},{step / 20}")
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")


def picture(path: Path, seed: int) -> None:
    """Draw a grid of 6 x 6 blobs of 8 x 8 pixels."""
    from PIL import Image

    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:8, 0:8]
    far = np.hypot(x - 3.5, y - 3.5)
    tiles = [np.pad(np.exp(-((far - random.uniform(1, 3)) ** 2)), 1) for _ in range(36)]
    grid = np.block([tiles[6 * i : 6 * i + 6] for i in range(6)])
    Image.fromarray((255 * grid).astype(np.uint8)).save(path)


def crossed(root: Path) -> Path:
    """Three targets, two schedules, two rates and three seeds.

    One setting is refused, and one run diverges.
    """
    random = np.random.default_rng(0)
    for objective, schedule, rate, seed in itertools.product(
        ("epsilon", "v", "x0"), ("linear", "cosine"), ("0.001", "0.01"), (1, 2, 3)
    ):
        keys = [f"objective={objective}", f"schedule={schedule}", f"optimizer.lr={rate}"]
        choices = {"data": "digits", "objective": objective, "schedule": schedule}
        how: dict[str, Any] = {"overrides": [*keys, f"seed={seed}"], "choices": choices}
        if keys == ["objective=x0", "schedule=cosine", "optimizer.lr=0.01"]:
            run = start_run(root, objective, seed, **how)
            (run / "config.yaml").unlink()
            refusal = {"status": "failed", "seed": seed, "error": "objective=x0: refused"}
            edit(run / "summary.json", schema=1, **refusal, **how)
            continue
        if (objective, rate, seed) == ("v", "0.01", 3):
            how |= {"status": "diverged", "error": "the loss is not finite", "test": {}, "val": {}}
        i = ("epsilon", "v", "x0").index(objective)
        bound = 2 + 0.05 * i + 0.02 * (schedule == "cosine") + 0.03 * (rate == "0.01")
        run = make_run(root, objective, seed, bound + seed / 100 + random.normal() * 0.004, **how)
        write_history(run, bound)
        picture(run / "samples" / "final.png", i)
    return Path(root)
