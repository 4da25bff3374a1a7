"""Draws in blocks: their definition, their independence of the processes, and what they cost."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from triptych.diffusion.block_draws import BLOCK, STREAMS
from triptych.diffusion.condition import Condition, drop_parts
from triptych.diffusion.draws import StepShare, Stream, evaluation_draw, hash_seed
from triptych.diffusion.likelihood import Likelihood
from triptych.diffusion.schedule import Linear

from .steps import CPU
from .test_draws import evenly_spread

SHAPE = (2, 3)
META = torch.device("meta")
draws = STREAMS["blocks"]


def share(batch, rank=0, world=1, seed=5, step=9, device=CPU) -> StepShare:
    return StepShare(batch, seed, step, rank, world, device)


def test_training_noise_is_that_of_its_blocks():
    """A block follows from (seed, stream, step, block) alone, as any program may draw it."""
    _, noise = draws.training_draw(SHAPE, share(40))
    assert noise.shape == (40, *SHAPE)
    for block, rows in enumerate(noise.split(BLOCK)):
        generator = torch.Generator().manual_seed(hash_seed(5, Stream.TRAINING, 9, block))
        whole = torch.randn(BLOCK, *SHAPE, generator=generator)
        assert torch.equal(rows, whole[: len(rows)])


def test_augmentations_draw_their_blocks_in_turn():
    """A block of a call follows from (seed, stream, step, call, block) alone."""
    draw = draws.augmentation_uniforms(share(40))
    for call, shape in enumerate([(), SHAPE]):
        numbers = draw(*shape)
        assert numbers.shape == (40, *shape)
        for block, rows in enumerate(numbers.split(BLOCK)):
            seed = hash_seed(5, Stream.AUGMENTATION, 9, call, block)
            whole = torch.rand(BLOCK, *shape, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(rows, whole[: len(rows)])


def all_of_a_step(share):
    """Return everything that a process draws in a step, a tensor (B / W, ...) each."""
    return [*draws_on_device(share), draws.ensemble_members(8, share)]


def draws_on_device(share):
    """Return what is drawn where it is needed; members are dealt on the CPU."""
    of_latents = draws.training_noise(share)
    latents = of_latents((len(range(share.batch)[share.part]), 4)), of_latents((1, 1))
    uniforms = [draws.uniforms(share, Stream.LABELS, *part) for part in ((), (1,))]
    times = draws.training_draw(SHAPE, share, stratified=False)[0]
    of_augmentations = draws.augmentation_uniforms(share)
    augmented = of_augmentations(), of_augmentations(*SHAPE)
    return [*draws.training_draw(SHAPE, share), *latents, *uniforms, times, *augmented]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [3, 24, 30, 100])
def test_any_share_equals_that_part_of_the_whole(world, batch, device=CPU):
    whole = all_of_a_step(share(batch, device=device))
    shares = [all_of_a_step(share(batch, rank, world, device=device)) for rank in range(world)]
    for drawn, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert len(drawn) == batch
        assert torch.equal(torch.cat(parts), drawn)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_shares_on_a_gpu_equal_the_whole():
    for world in (1, 2, 3, 4):
        test_any_share_equals_that_part_of_the_whole(world, 100, torch.device("cuda", 0))


def test_step_draws_differ_by_seed_step_use_and_level():
    first = all_of_a_step(share(48))
    torch.manual_seed(3)  # global generators have no part in it
    assert all(map(torch.equal, first, all_of_a_step(share(48))))
    for other in (share(48, seed=6), share(48, step=10)):
        for drawn, differing in zip(first, all_of_a_step(other), strict=True):
            assert not torch.equal(drawn, differing)
    of_latents = draws.training_noise(share(48))
    alike = [draws.training_draw((4,), share(48))[1], *(of_latents((48, 4)) for _ in range(2))]
    for one in range(3):
        assert not (alike[one] == alike[one - 1]).any()


def test_step_draws_are_distributed_as_they_should_be():
    n = 4000
    times, noise = draws.training_draw((8,), share(n))
    evenly_spread(draws.training_draw((8,), share(64))[0])
    assert abs((times[1:] - 0.5).mul(times[:-1] - 0.5).mean().item()) < 0.01
    assert noise.mean(0).abs().max() < 5 / math.sqrt(n)
    assert (noise.T @ noise / n - torch.eye(8)).abs().max() < 5 * math.sqrt(2 / n)
    assert abs((noise**4).mean().item() - 3) < 0.2
    uniforms = draws.uniforms(share(n), Stream.LABELS)
    assert uniforms.min() >= 0 and uniforms.max() < 1
    assert abs(uniforms.mean().item() - 0.5) < 5 / math.sqrt(12 * n)
    assert draws.ensemble_members(8, share(n)).bincount().tolist() == [n // 8] * 8


def test_condition_parts_are_dropped_by_the_streams_uniforms():
    label = torch.arange(100)
    dropped = drop_parts(Condition(label=label), 0.3, 5, 9, random=draws).parts["label"].presence()
    assert torch.equal(~dropped, draws.uniforms(share(100), Stream.LABELS) < 0.3)


def test_evaluation_on_the_cpu_has_the_same_noise_in_both_streams():
    index = torch.tensor([7, 3, 40])
    here = draws.evaluation_draw(SHAPE, index, 3, 1, 4, CPU)
    assert all(map(torch.equal, here, evaluation_draw(SHAPE, index, 3, 1, 4)))


def test_evaluation_noise_depends_on_item_and_level_not_batch():
    whole = draws.evaluation_noise(torch.tensor([4, 9, 2]), 3, 1, CPU)
    part = draws.evaluation_noise(torch.tensor([9]), 3, 1, CPU)
    first, second = whole((3, *SHAPE)), whole((3, *SHAPE))
    assert torch.equal(part((1, *SHAPE)), first[1:2])
    assert torch.equal(part((1, *SHAPE)), second[1:2])
    assert not (first == second).any()


class Count(TorchDispatchMode):
    """Count random numbers by the operator that draws them; refuse tensors of the CPU."""

    def __init__(self):
        super().__init__()
        self.numbers = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            assert tensor.device == META, func
        name = func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.numbers[name] = self.numbers.get(name, 0) + result.numel()
        return result


@pytest.mark.parametrize("items", [4, 40, 64])
def test_a_process_draws_its_own_items_however_many_there_are(items):
    """At a fixed share, noise and augmentations do not grow with the processes; the rest is a number an item."""
    counts = {"normal_": [], "uniform_": []}
    for world in (1, 2, 8, 64):
        of_this_process = share(items * world, world // 2, world, device=META)
        with Count() as count:
            draws.training_draw((3, 8, 8), of_this_process)
            draws.augmentation_uniforms(of_this_process)(3, 8, 8)
        for name, drawn in counts.items():
            drawn.append(count.numbers.pop(name) // (3 * 8 * 8))
        assert sum(count.numbers.values()) <= 2 * items * world + 1
    blocks = -(-items // BLOCK)
    for drawn in counts.values():
        assert max(drawn) <= BLOCK * (blocks + 1)  # a share may begin and end within a block
        assert items % BLOCK or {*drawn} == {items}


def test_no_draw_is_made_on_another_device():
    index = torch.arange(3)
    likelihood = Likelihood(Linear(-6, 4), probes=2, dequantisation="uniform", levels=5)
    with Count():
        draws_on_device(share(30, 1, 3, device=META))
        draws.evaluation_noise(index, 3, 1, META)((3, *SHAPE))
        x = torch.zeros(3, *SHAPE, device=META)
        place = draws.place(META)
        likelihood._noise(x, index, place), likelihood._probes(x, index, place)
