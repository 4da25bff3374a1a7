"""Draws: what they depend on, what they do not, and how evenly times are spread."""

import math

import pytest
import torch

from triptych.diffusion.draws import evaluation_draw, hash_seed, stratified_times

from .steps import ensemble_members, training_draw

SHAPE = (2, 3)


def gaps(t):
    """Return the gaps between the sorted times around the circle."""
    t = t.double().sort().values
    return torch.cat([t, t[:1] + 1]).diff()


def evenly_spread(t):
    torch.testing.assert_close(
        gaps(t), torch.full((len(t),), 1 / len(t)).double(), rtol=0, atol=2e-7
    )


def test_mix_has_no_collisions_and_depends_on_order():
    seeds = [hash_seed(a, b, c) for a in range(-5, 60) for b in range(60) for c in range(25)]
    seeds += [hash_seed(a, b) for a in range(300) for b in range(300)] + [
        hash_seed(a) for a in range(1000)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert hash_seed(3, 1, 4) == hash_seed(3, 1, 4)


def test_mix_of_consecutive_seeds_is_uncorrelated():
    """Each bit of a seed flips for half of all neighbours: mean 1/2 with the standard error 1 / (2
    sqrt n)."""
    n = 4000
    flips = [
        [(hash_seed(7, i) ^ hash_seed(7, i + 1)) >> bit & 1 for bit in range(63)] for i in range(n)
    ]
    assert (torch.tensor(flips).double().mean(0) - 0.5).abs().max() < 5 / (2 * math.sqrt(n))


@pytest.mark.parametrize("batch", [1, 2, 49, 98, 103, 128, 1000])
def test_stratified_times_cover_each_stratum_once(batch):
    for seed in range(5):
        t = stratified_times(batch, torch.Generator().manual_seed(seed))
        assert t.shape == (batch,) and t.min() >= 0 and t.max() < 1
        evenly_spread(t)


def test_stratified_times_are_shuffled_and_uniform():
    t = torch.stack(
        [stratified_times(64, torch.Generator().manual_seed(seed)) for seed in range(400)]
    )
    # At every position of the batch t is uniform: mean 1/2, variance 1/12.
    assert (t.mean(0) - 0.5).abs().max() < 5 / math.sqrt(12 * 400)
    assert (t.var(0) - 1 / 12).abs().max() < 0.02
    lag = (t[:, 1:] - 0.5) * (t[:, :-1] - 0.5)
    # Neighbours in the data are not neighbours in time (0.08 without the permutation).
    assert abs(lag.mean().item()) < 0.01


@pytest.mark.parametrize("batch", [8, 12, 30])
def test_training_members_share_global_batch_equally_on_any_world_size(batch):
    for step in range(5):
        whole = ensemble_members(8, batch, 3, step)
        assert {batch // 8, -(-batch // 8)} >= {*whole.bincount(minlength=8).tolist()}
        for world in (2, 3):
            if batch % world == 0:
                parts = [ensemble_members(8, batch, 3, step, rank, world) for rank in range(world)]
                assert torch.cat(parts).equal(whole)


def test_training_members_cover_all_noise_levels_evenly():
    """With 8 members and a batch of 8, each member sees one of 8 strata per step; over 2,000 steps
    each stratum has the share 1 / 8."""
    steps, members, batch = 2000, 8, 8
    seen = torch.zeros(members, 8)
    for step in range(steps):
        times, _ = training_draw((), batch, 0, step)
        strata = (times * 8).long()
        seen.index_put_(
            (ensemble_members(members, batch, 0, step), strata),
            torch.ones(batch),
            accumulate=True,
        )
    expected = steps / 8
    chi_squares = ((seen - expected).square() / expected).sum(1)
    assert chi_squares.max() < 30  # 7 degrees of freedom: exceeded once in 10,000


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("batch", [32, 30])
def test_training_draws_of_ranks_concatenate_to_global_draw(world, batch):
    whole = training_draw(SHAPE, batch, seed=5, step=9)
    slices = [training_draw(SHAPE, batch, 5, 9, rank, world) for rank in range(world)]
    assert whole[0].shape == (batch,) and whole[1].shape == (batch, *SHAPE)
    for i in (0, 1):
        assert torch.equal(torch.cat([s[i] for s in slices]), whole[i])
    evenly_spread(whole[0])


def test_training_draws_follow_from_seed_and_step_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = training_draw(SHAPE, 16, seed=0, step=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again = training_draw(SHAPE, 16, seed=0, step=3)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for seed, step in ((0, 4), (1, 3), (3, 0)):
        other = training_draw(SHAPE, 16, seed, step)
        assert not (other[1] == first[1]).any()
        assert not torch.equal(other[0].sort().values, first[0].sort().values)


def test_evaluation_draws_depend_on_item_not_batch():
    """Item 17 has the same times and noise in every batch, in every order and with every state of
    the global generator."""
    index = torch.arange(40)
    whole = evaluation_draw(SHAPE, index, seed=3, repeat=1, repeats=4)
    assert [a.shape for a in whole] == [(40,), (40, *SHAPE), (40, *SHAPE)]
    assert [a.dtype for a in whole] == [torch.float32] * 3
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    for part in order.split([1, 7, 32]):
        draw = evaluation_draw(SHAPE, part, 3, 1, 4)
        for a, b in zip(draw, whole, strict=True):
            assert torch.equal(a, b[part])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_evaluation_draws_differ_by_seed_repeat_item_and_use():
    index = torch.arange(50)
    base = evaluation_draw(SHAPE, index, seed=3, repeat=1, repeats=4)
    assert not (base.eps == base.eps_0).any()  # fresh noise for reconstruction and diffusion
    assert len(base.eps.flatten(1)[:, 0].unique()) == len(base.t.unique()) == 50
    for seed, repeat in ((4, 1), (3, 2), (1, 3)):
        other = evaluation_draw(SHAPE, index, seed, repeat, 4)
        assert not any((a == b).any() for a, b in zip(base, other, strict=True))
    train_t, train_eps = training_draw(SHAPE, 50, 3, 1)
    assert not (train_eps == base.eps).any() and not (train_t == base.t).any()


@pytest.mark.parametrize("repeats", [1, 4, 7, 16])
def test_evaluation_times_of_repeats_are_evenly_spread(repeats):
    for item in (0, 1, 296, 59_999):
        index = torch.tensor([item])
        evenly_spread(
            torch.cat([evaluation_draw((1,), index, 11, r, repeats).t for r in range(repeats)])
        )


def test_evaluation_times_of_items_are_evenly_spread():
    """The golden ratio leaves no gap above 1.8945 / n (three-gap theorem); random draws leave gaps
    of log n / n."""
    for n in (10, 297, 1000):
        t = evaluation_draw((1,), torch.arange(n), 2, 0, 1).t
        assert t.min() >= 0 and t.max() < 1
        assert gaps(t).max() < 1.9 / n


def test_evaluation_noise_is_standard_normal_and_independent():
    draw = evaluation_draw((8,), torch.arange(3000), 0, 0, 1)
    noise = torch.cat([draw.eps, draw.eps_0], 1).double()
    n = len(noise)
    assert noise.mean(0).abs().max() < 5 / math.sqrt(n)
    assert (noise.T @ noise / n - torch.eye(16)).abs().max() < 5 * math.sqrt(2 / n)
    assert abs((noise**4).mean().item() - 3) < 0.2


def test_times_stay_below_one_in_float32():
    """1 - 1e-10 rounds to 1 in float32, where a schedule may have no slope and floor(t T) is no
    step."""
    index, repeats = torch.tensor([0]), 2**40
    start = hash_seed(5, 2) / 2**63  # item 0's first time
    repeat = round((1 - start - 1e-10) * repeats)
    exact = start + repeat / repeats
    assert 1 - 2e-10 < exact < 1 and torch.tensor(exact, dtype=torch.float32) == 1
    t = evaluation_draw((), index, 5, repeat, repeats).t.item()
    assert 1 - 1e-6 < t < 1
