"""A network reads a large batch in pieces that fit in the memory that was measured."""

import pytest
import torch

from triptych.diffusion.condition import Condition
from triptych.diffusion.pieces import PROBE, Pieces
from triptych.diffusion.sampler import chunk_size


class FixedMemory:
    """A device with so many free bytes, of which a call on ``PROBE`` items needs 100 an item."""

    def __init__(self, free):
        self.bytes, self.measured = free, 0

    def free(self, device):
        return self.bytes

    def needed(self, call, device):
        call()
        self.measured += 1
        return 100 * PROBE


@pytest.mark.parametrize(
    ("free", "pieces"), [(10**6, [50]), (32_000, [20, 20, 10]), (1, 6 * [PROBE] + [2])]
)
def test_pieces_fit_in_a_sixteenth_of_the_free_memory_and_keep_items_with_their_conditions(
    free, pieces
):
    memory, sizes = FixedMemory(free), []

    def network(z, gamma, condition):
        sizes.append(len(z))
        return z + gamma.unsqueeze(1) + condition.parts["label"].value.unsqueeze(1)

    call, z, gamma = Pieces(memory), torch.randn(50, 3), torch.randn(50)
    condition = Condition(label=torch.arange(50))
    expected = z + gamma.unsqueeze(1) + torch.arange(50).unsqueeze(1)
    assert torch.equal(call(network, z, gamma, condition), expected)
    assert torch.equal(call(network, z, gamma, condition), expected)
    assert sizes == [PROBE, *pieces, *pieces] and memory.measured == 1


def test_a_small_batch_is_not_measured():
    memory, z = FixedMemory(0), torch.randn(PROBE, 3)
    raw = Pieces(memory)(lambda z, gamma, condition: 2 * z, z, torch.zeros(PROBE), None)
    assert torch.equal(raw, 2 * z) and not memory.measured


def test_a_chunk_on_a_gpu_is_four_times_that_on_a_cpu():
    assert chunk_size((3, 64, 64)) == 85 and chunk_size((3, 64, 64), "cuda") == 341
