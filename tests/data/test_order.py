"""Order in training and evaluation: every item once, for any number of processes and any step."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lightning import trainer
from triptych.data.base import DataModule
from triptych.data.batch import Batch, Split
from triptych.data.order import EvalLoader, TrainLoader, TrainOrder


class Count(DataModule):
    """Data whose item i is the number i."""

    name, shape = "count", (1,)

    def __init__(self, n=297, val=0, **loading):
        super().__init__(**loading)
        self.n, self.val = n, val

    def load(self):
        return {
            name: Split(torch.arange(n, dtype=torch.float32)[:, None])
            for name, n in (("train", self.n), ("val", self.val), ("test", self.n))
        }


def count(**keys):
    data = Count(**keys)
    data.setup()
    return data


sizes = st.tuples(st.integers(1, 40), st.integers(1, 100), st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_train_order_visits_each_item_once_per_epoch(size):
    n, batch_size, seed = size
    order = TrainOrder(n, batch_size, seed)
    steps = -(-3 * n // batch_size)
    laid = torch.cat([order.indices(step) for step in range(steps)])
    assert len(laid) == steps * batch_size
    for epoch in range(3):
        assert sorted(laid[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(0, 10**6))
def test_train_order_computes_any_step_without_replay(size, start):
    n, batch_size, seed = size
    going = TrainOrder(n, batch_size, seed)
    for step in range(start, start + 4):
        assert going.indices(step).equal(TrainOrder(n, batch_size, seed).indices(step))


def test_train_order_differs_by_seed_and_epoch():
    a, b = TrainOrder(100, 100, 1), TrainOrder(100, 100, 2)
    assert not a.indices(0).equal(b.indices(0))
    assert not a.indices(0).equal(a.indices(1))
    # Seed 1's second epoch is not seed 2's first, as seeds that are added up would make it.
    assert not a.indices(1).equal(b.indices(0))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_global_batch(world):
    split, order = Split(torch.arange(100)[:, None].float()), TrainOrder(100, 12, 0)
    ranks = [iter(TrainLoader(split, order, lambda: 5, rank, world)) for rank in range(world)]
    for step in range(5, 25):
        parts = [next(rank) for rank in ranks]
        assert {len(part.x) for part in parts} == {12 // world}
        assert torch.cat([part.index for part in parts]).equal(order.indices(step))
        assert torch.cat([part.x for part in parts])[:, 0].long().equal(order.indices(step))


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 64, 1000])
def test_eval_loader_visits_each_item_once_over_all_ranks(monkeypatch, world, batch_size):
    split = Split(torch.arange(297)[:, None].float())
    seen = []
    for rank in range(world):
        loader = EvalLoader(split, batch_size)
        monkeypatch.setattr("triptych.data.order.rank_world", lambda rank=rank: (rank, world))
        batches = list(loader)
        assert len(batches) == len(loader)
        assert [i for b in batches for i in b.index.tolist()] == list(range(rank, 297, world))
        seen += [int(v) for b in batches for v in b.x[:, 0]]
    assert sorted(seen) == list(range(297))


def test_eval_loader_allows_more_ranks_than_items(monkeypatch):
    loader, batches = EvalLoader(Split(torch.arange(2)[:, None].float()), 8), []
    for rank in range(4):
        monkeypatch.setattr("triptych.data.order.rank_world", lambda rank=rank: (rank, 4))
        batches.append(len(list(loader)))
    assert batches == [1, 1, 0, 0] and loader.items == 2


def test_eval_dataloader_of_train_respects_limit():
    data = count(n=50, eval_batch_size=20)
    assert torch.cat([b.index for b in data.eval_dataloader("train")]).tolist() == list(range(50))
    assert torch.cat([b.index for b in data.eval_dataloader("train", limit=30)]).tolist() == list(
        range(30)
    )
    assert len(data.eval_dataloader("train", limit=1000)) == 3


def test_loaders_read_rank_from_torch_distributed(monkeypatch):
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    data = count(batch_size=12)
    order = TrainOrder(297, 12, 0)
    assert next(iter(data.train_dataloader())).index.equal(order.indices(0)[4:8])
    assert next(iter(data.eval_dataloader("test"))).index[:3].tolist() == [1, 4, 7]


class Watch(pl.LightningModule):
    """A model that keeps the indices of its batches."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, _):
        assert isinstance(batch, Batch)
        self.seen.append(batch.index.tolist())
        return (self.weight - batch.x).square().mean()

    def validation_step(self, batch, _):
        self.validated += batch.index.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(path, data, ckpt=None, **keys):
    watch, run = Watch(), trainer(path, **keys)
    run.fit(watch, datamodule=data, ckpt_path=ckpt)
    return watch, run


def expected(data, start, stop):
    order = TrainOrder(data.n, data.batch_size, data.seed)
    return [order.indices(step).tolist() for step in range(start, stop)]


def test_lightning_resumes_train_order_from_checkpoint(tmp_path):
    often = {"check_val_every_n_epoch": None, "val_check_interval": 2}
    first, run = fit(tmp_path, Count(10, val=3, batch_size=4, seed=7), max_steps=5, **often)
    run.save_checkpoint(tmp_path / "a.ckpt")
    second, _ = fit(
        tmp_path, Count(10, batch_size=4, seed=7), ckpt=tmp_path / "a.ckpt", max_steps=9
    )
    data = Count(10, batch_size=4, seed=7)
    assert first.seen == expected(data, 0, 5)
    assert second.seen == expected(data, 5, 9)
    assert set(first.validated) == {0, 1, 2}
    assert second.validated == []  # an empty validation set is passed over


def test_train_order_under_max_epochs_accumulation_and_overfit_batches(tmp_path):
    data = Count(10, batch_size=4)
    short, _ = fit(tmp_path, data, max_epochs=3, limit_train_batches=2)
    assert short.seen == expected(data, 0, 6)
    again, twice = partial(Count, 10, batch_size=4), {"accumulate_grad_batches": 2}
    summed, run = fit(tmp_path, again(), max_steps=3, **twice)
    run.save_checkpoint(tmp_path / "b.ckpt")
    assert summed.seen == expected(data, 0, 6)
    more, _ = fit(tmp_path, again(), tmp_path / "b.ckpt", max_steps=4, **twice)
    assert more.seen == expected(data, 6, 8)
    same, _ = fit(tmp_path, again(), max_steps=6, overfit_batches=2)
    assert same.seen == expected(data, 0, 2) * 3
