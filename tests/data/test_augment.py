"""Augmentations of training images."""

import pytest
import torch

from tests.refusal import refused
from triptych.data.augment import (
    Augmentation,
    ConditioningNoise,
    Crop,
    Flip,
    augment,
    augment_batch,
    count_condition_numbers,
    noise_only_description,
)
from triptych.data.batch import Batch, Split
from triptych.data.build import build_data
from triptych.data.order import TrainLoader, TrainOrder
from triptych.diffusion.block_draws import STREAMS
from triptych.diffusion.condition import AUGMENTATION, Condition
from triptych.diffusion.draws import Stream, hash_seed

X = torch.rand(12, 3, 6, 8, generator=torch.Generator().manual_seed(0))


def test_flip_mirrors_about_half_of_images():
    found, _ = augment(X.repeat(50, 1, 1, 1), [Flip()], seed=1, step=3)
    whole = X.repeat(50, 1, 1, 1)
    mirrored = (found == whole.flip(-1)).flatten(1).all(1)
    assert ((found == whole).flatten(1).all(1) ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 4 * (0.25 / 600) ** 0.5


def test_crop_offsets_are_uniform():
    ramp = torch.arange(3.0).view(1, 1, 1, 3).expand(9000, 1, 3, 3)
    found = augment(ramp, [Crop(1)], seed=0, step=0)[0][:, 0, 1, 1]
    shares = torch.bincount(found.long(), minlength=3) / 9000
    assert (shares - 1 / 3).abs().max() < 4 * (2 / 9 / 9000) ** 0.5


class Collect(Augmentation):
    """Keep what is drawn: numbers (B,), then images."""

    def apply(self, x, uniform):
        self.drawn = uniform(), uniform(*x.shape[1:])
        return x, x.new_zeros(len(x), 0)


def test_stream_batch_draws_global_batch_from_one_generator():
    """All augmentations of an item draw in turn; so runs of earlier versions drew."""
    steps = [Collect(), Collect()]
    augment(X[4:8], steps, seed=5, step=7, rank=1, world=3)
    generator = torch.Generator().manual_seed(hash_seed(5, Stream.AUGMENTATION, 7))
    for step in steps:
        for drawn in step.drawn:
            assert drawn.equal(torch.rand(12, *drawn.shape[1:], generator=generator)[4:8])


by_stream = pytest.mark.parametrize("random", STREAMS.values(), ids=STREAMS)


@by_stream
def test_augmentation_is_independent_of_number_of_processes(random, world=3):
    steps, share = [Flip(0.3, told=True), Crop(3, p=0.5, told=True)], len(X) // world
    whole, done = augment(X, steps, seed=5, step=7, random=random)
    for r in range(world):
        own = slice(r * share, (r + 1) * share)
        part, told = augment(X[own], steps, 5, 7, r, world, random)
        assert part.equal(whole[own])
        assert told.equal(done[own])
    assert not whole.equal(augment(X, steps, seed=5, step=8, random=random)[0])


@by_stream
def test_resumed_loader_repeats_same_augmentations(random):
    split, changes = Split((X * 255).byte(), None, 256), [Flip(), Crop(2)]

    def loader(first, **options):
        order = TrainOrder(12, 4, 3)
        return iter(TrainLoader(split, order, lambda: first, changes=changes, **options))

    through = loader(0, random=random)
    batches = [next(through).x for _ in range(6)]
    for step in (2, 5):
        assert next(loader(step, random=random, ahead=2)).x.equal(batches[step])
        other = next(loader(step)).x  # of the stream ``batch``
        assert other.equal(batches[step]) == (random.name == "batch")


def test_told_augmentation_returns_parameters_of_each_item():
    """A flip is 1, a move is in paddings down and to the right, and no change is 0."""
    many = X.repeat(20, 1, 1, 1)
    found, done = augment(many, [Flip(0.3, told=True), Crop(2, p=0.4, told=True)], seed=1, step=3)
    assert done.shape == (240, 3) and done.abs().max() <= 1
    flipped, down, right = done.unbind(1)
    for i in range(len(many)):
        image = many[i].flip(-1) if flipped[i] else many[i]
        wide = torch.nn.functional.pad(image[None], (2, 2, 2, 2), mode="reflect")[0]
        d, r = (int(round(2 - 2 * by[i].item())) for by in (down, right))
        assert wide[:, d : d + 6, r : r + 8].equal(found[i])
        assert done[i].any() == (not found[i].equal(many[i]))
    assert abs(flipped.mean() - 0.3) < 4 * (0.21 / 240) ** 0.5
    moved = ((down != 0) | (right != 0)).float().mean().item()
    assert abs(moved - 0.4 * 24 / 25) < 4 * (0.24 / 240) ** 0.5
    plain, nothing = augment(many, [Flip(0.3), Crop(2, p=0.4)], seed=1, step=3)
    assert plain.equal(found) and nothing.shape == (240, 0)
    only, said = augment(many, [Flip(0.3), Crop(2, told=True)], seed=1, step=3)
    assert said.shape == (240, 2) and count_condition_numbers([Flip(0.3), Crop(2, told=True)]) == 2


def test_augment_refuses_points():
    for step in (Flip(), Crop(2)):
        refused(
            lambda step=step: augment(torch.rand(5, 2), [step], seed=0, step=0),
            "augmentation: needs images (C, H, W), but items are (2,); set augmentation=none",
        )


def test_augmentation_leaves_val_and_test_unchanged(prepared):
    """By a configuration: validation and test images are unchanged."""
    runs = [prepared(f"augmentation={how}", path=how) for how in ("none", "flip_crop")]
    plain, changed = (build_data(run.config()) for run in runs)
    for name in ("val", "test"):
        ours, theirs = (next(iter(data.eval_dataloader(name))).x for data in (plain, changed))
        assert ours.equal(theirs)
    ours, theirs = (next(iter(data.train_dataloader())) for data in (plain, changed))
    assert ours.index.equal(theirs.index) and not ours.x.equal(theirs.x)


def low_batch(n=4000):
    low = 0.5 * torch.ones(n, 1, 2, 2)
    return Split(torch.zeros(n, 3, 4, 4), Condition(label=torch.arange(n), low=low)).batch(
        torch.arange(n)
    )


def test_conditioning_noise_matches_reported_level():
    found = augment_batch(low_batch(), [ConditioningNoise(p=0.7, most=0.8)], seed=1, step=2)
    level, noised = (found.condition.parts[name] for name in (AUGMENTATION, "low"))
    s = level.value[:, 0]
    assert level.present.equal(s > 0) and s.max() <= 0.8
    assert abs((s > 0).double().mean() - 0.7) < 4 * (0.21 / 4000) ** 0.5
    assert abs(s[s > 0].mean() - 0.4) < 4 * 0.8 / (12 * 2800) ** 0.5
    assert (noised.value[s == 0] == 0.5).all() and not found.x.any()
    # q(z | low) of Ho et al. 2022: mean cos(pi s / 2) low, variance sin(pi s / 2)^2
    angle = torch.pi / 2 * s[s > 0].view(-1, 1, 1, 1)
    eps = (noised.value[s > 0] - angle.cos() * 0.5) / angle.sin()
    n = eps.numel()
    assert eps.mean().abs() < 4 / n**0.5 and abs(eps.square().mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs((eps.abs() < 1).double().mean() - 0.6827) < 4 * (0.2166 / n) ** 0.5


@by_stream
def test_conditioning_noise_is_independent_of_number_of_processes(random):
    steps, batch = [Flip(0.5, told=True), ConditioningNoise()], low_batch(12)
    whole = augment_batch(batch, steps, seed=1, step=2, random=random)
    parts = [Batch(*(part[s] for part in batch)) for s in (slice(6), slice(6, 12))]
    halves = [augment_batch(part, steps, 1, 2, r, 2, random) for r, part in enumerate(parts)]
    for name in (AUGMENTATION, "low", "label"):
        parts = [half.condition.parts[name].value for half in halves]
        assert torch.cat(parts).equal(whole.condition.parts[name].value)
    assert whole.condition.parts[AUGMENTATION].value.shape == (
        12,
        count_condition_numbers(steps) == 2 and 2,
    )
    alone = augment(batch.x, steps[:1], seed=1, step=2, random=random)[1]
    assert alone[:, 0].equal(whole.condition.parts[AUGMENTATION].value[:, 0])


def test_noise_numbers_holds_level_and_refuses_unknown_part():
    steps = [ConditioningNoise(), Flip(told=True)]
    assert noise_only_description(steps, "low", 0.25).tolist() == [0.25, 0.0]
    high = [ConditioningNoise("high")]
    refused(lambda: augment_batch(low_batch(4), high, seed=1, step=2), "no part 'high'")
