"""items.npz, the bound of each test item: whole, safe to read, equal on any number of processes."""

import json
import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing

from triptych.diffusion.bound import BoundTerms
from triptych.diffusion.control import DrawError
from triptych.models.accounting import TERMS, Account, Accounting
from triptych.run.evaluate import take_errors_over_groups, write_items
from triptych.run.execute import execute
from triptych.run.items import effective_number, group_values, read_items

NAMES = ["index", "total", "prior", "reconstruction", "diffusion", "draw_variance"]
N = 13  # odd, and no multiple of 2 or 3


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_items_npz_holds_bound_of_each_test_item(prepared):
    run = prepared("bound.repeats=3")
    summary = execute(run)
    found = read(run / "items.npz")
    assert sorted(found) == sorted(NAMES)
    assert found["index"].dtype == np.int64 and (found["index"] == np.arange(297)).all()
    assert all(
        found[name].dtype == np.float64 and found[name].shape == (297,) for name in NAMES[1:]
    )
    test = summary["test"]
    for name in NAMES[1:5]:
        figure = test["bpd"] if name == "total" else test[f"bpd_{name}"]
        assert found[name].mean() == pytest.approx(figure["mean"], rel=1e-12)
        assert found[name].std(ddof=1) / math.sqrt(297) == pytest.approx(figure["stderr"], rel=1e-9)
    assert (found["draw_variance"] > 0).all()
    noise = math.sqrt(found["draw_variance"].sum()) / 297
    assert noise < test["bpd"]["draw_stderr"] < 3 * noise  # with what the times miss
    total = found["prior"] + found["reconstruction"] + found["diffusion"]
    np.testing.assert_allclose(found["total"], total, rtol=1e-12)
    json.dumps(summary.record, allow_nan=False)


def test_errors_over_groups_are_those_of_the_jackknife(tmp_path):
    random, groups = np.random.default_rng(0), torch.tensor([7, 7, 7, 2, 2, 5, 9, 9, 9, 9, 9])
    index, rows = torch.tensor([0, 1, 3, 4, 5, 6, 10]), torch.tensor(random.normal(size=(7, 5)))
    account = Account({f"bpd{term}": {"stderr": 0.0, "n": 7} for term in TERMS}, "bpd")
    account.per_item = index, rows
    take_errors_over_groups(account, groups)
    of = groups[index]
    for place, term in enumerate(TERMS):
        without = [rows[of != g, place].mean().item() for g in (2, 5, 7, 9)]
        truth = math.sqrt(3 / 4 * np.square(np.array(without) - np.mean(without)).sum())
        figure = account.figures[f"bpd{term}"]
        assert figure == {"stderr": pytest.approx(truth), "n": 7, "groups": 4}
    assert write_items(tmp_path / "items.npz", account)
    items = read_items(tmp_path)
    assert items.group.tolist() == of.tolist()
    values = group_values(items.total, items.group)
    assert values.mean() == pytest.approx(items.total.mean()) and effective_number(
        of
    ) == pytest.approx(49 / 13)
    equal = np.array([1, 0, 1, 0])
    assert group_values(np.array([1.0, 2, 3, 4]), equal) == pytest.approx([3.0, 2.0])


def test_write_items_skips_model_without_per_item_bound(tmp_path):
    assert not write_items(tmp_path / "items.npz", Account({}, "bpd")) and not [*tmp_path.iterdir()]


def terms():
    generator = torch.Generator().manual_seed(0)
    return 50 * torch.rand(4, N, generator=generator, dtype=torch.float64)


def share(rank, world, folder):
    """Count the items of one process, and reduce the sums over gloo."""
    meet = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    accounting = Accounting(dims=3, discrete=True)
    accounting.expect(N)
    for at in (
        torch.arange(rank, N, world).flip(0).split(2)
    ):  # in an order of its own, in small batches
        prior, reconstruction, diffusion, variance = terms()[:, at]
        error = DrawError(variance, variance - 25)
        accounting.update(BoundTerms(prior, reconstruction, diffusion), index=at, error=error)
    found = accounting.compute()
    torch.save((found.per_item, found.figures), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_per_item_bounds_are_independent_of_world_size(world, tmp_path):
    multiprocessing.start_processes(
        share, (world, str(tmp_path)), nprocs=world, start_method="fork"
    )
    prior, reconstruction, diffusion, variance = terms()
    alone = Accounting(dims=3, discrete=True)
    alone.expect(N)
    error = DrawError(variance, variance - 25)
    alone.update(BoundTerms(prior, reconstruction, diffusion), index=torch.arange(N), error=error)
    single = alone.compute()
    expected = (prior + reconstruction + diffusion) / (3 * math.log(2))
    torch.testing.assert_close(single.per_item[1][:, 0], expected)
    torch.testing.assert_close(single.per_item[1][:, 4], variance / (3 * math.log(2)) ** 2)
    drawn = math.hypot(variance.sum().sqrt(), (variance - 25).sum()) / N / (3 * math.log(2))
    assert single.figures["bpd"]["draw_stderr"] == pytest.approx(drawn)
    for rank in range(world):
        (index, rows), found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(index, torch.arange(N))
        assert torch.equal(rows, single.per_item[1])
        assert found["bpd"] == pytest.approx(single.figures["bpd"], rel=1e-14)
        assert found["bpd"]["n"] == N
