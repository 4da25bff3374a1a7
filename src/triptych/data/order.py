"""Load batches: those of training follow from the step; evaluation visits each item once."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from triptych.data.augment import Augmentation, augment_batch
from triptych.data.batch import Batch, Split
from triptych.diffusion.draws import BATCH_DRAWS, BatchDraws, Stream, seeded_generator
from triptych.errors import DataError


def rank_world() -> tuple[int, int]:
    """Return (rank, number of processes): (0, 1) unless torch.distributed is running."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class TrainOrder:
    """The order of training items: one permutation per epoch, joined and then cut into batches.

    A batch may cross epochs, so no item is dropped. The batch of any step is computed without those
    before it, so a resumed run sees the same batches as an uninterrupted one.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self._latest: tuple[int, Tensor] | None = None

    def permutation(self, epoch: int) -> Tensor:
        """Return the order of the items in one epoch, (n,) int64."""
        latest = self._latest  # read once, because other threads may replace it
        if latest is None or latest[0] != epoch:
            latest = (
                epoch,
                torch.randperm(self.n, generator=seeded_generator(self.seed, Stream.ORDER, epoch)),
            )
            self._latest = latest
        return latest[1]

    def indices(self, step: int) -> Tensor:
        """Return the items of the global batch of `step` (counted from 0), (batch_size,) int64."""
        start = step * self.batch_size
        stop = start + self.batch_size
        epochs = range(start // self.n, (stop - 1) // self.n + 1)
        cuts = [self.permutation(e)[max(start - e * self.n, 0) : stop - e * self.n] for e in epochs]
        return torch.cat(cuts)


@dataclass(eq=False)
class TrainLoader:
    """Endless training batches of this rank: slice `rank` of `world` of each global batch.

    `first()` returns the number of the batch at which an `iter()` begins. `repeat` > 0 cycles over
    the first `repeat` batches (overfitting on purpose). With `ahead` > 0, that many threads prepare
    that many batches in advance. `random` draws the random numbers of the augmentations `changes`.
    """

    split: Split
    order: TrainOrder
    first: Callable[[], int] = lambda: 0
    rank: int = 0
    world: int = 1
    pin_memory: bool = False
    repeat: int = 0
    changes: Sequence[Augmentation] = ()
    ahead: int = 0
    random: BatchDraws = BATCH_DRAWS

    def batch(self, step: int) -> Batch:
        """Return this rank's part of the batch of `step`."""
        indices = self.order.indices(step % self.repeat if self.repeat else step)
        share = len(indices) // self.world
        batch = self.split.batch(indices[self.rank * share : (self.rank + 1) * share])
        if self.changes:
            batch = augment_batch(
                batch, self.changes, self.order.seed, step, self.rank, self.world, self.random
            )
        if self.pin_memory:
            return batch.pin()
        return batch

    def __iter__(self) -> Iterator[Batch]:
        step = self.first()
        if not self.ahead:
            yield from map(self.batch, count(step))
        # Threads do not change the order, as a batch depends only on its step.
        with ThreadPoolExecutor(self.ahead) as pool:
            pending = deque(pool.submit(self.batch, step + k) for k in range(self.ahead))
            for later in count(step + self.ahead):
                batch = pending.popleft().result()
                pending.append(pool.submit(self.batch, later))
                yield batch


@dataclass(eq=False)
class EvalLoader:
    """A loader that visits each item once over all ranks, in order, without padding or dropping.

    This rank visits the items rank, rank + world, .... Ranks may have one batch more or less, so
    collective operations are allowed only after the last batch. `limit`: visit only the first
    `limit` items, a random sample. `name` is the split's name. `numbers` (n,) are recorded hashes
    of the items; an error is raised if an item has changed since.
    """

    split: Split
    batch_size: int
    limit: int | None = None
    pin_memory: bool = False
    name: str = ""
    numbers: Tensor | None = None

    @property
    def items(self) -> int:
        return len(self.split) if self.limit is None else min(self.limit, len(self.split))

    @property
    def indices(self) -> Tensor:
        """The indices of this rank's items, (n,) int64; valid once the trainer's processes run."""
        rank, world = rank_world()
        return torch.arange(self.items)[rank::world]

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def item_numbers(self, batch: Batch) -> Tensor:
        """Hash each item of a batch with its condition and its group, int64 (B,)."""
        numbers = batch.numbers()
        if self.split.groups is not None:
            numbers = numbers ^ (self.split.groups[batch.index] + 1)
        return numbers

    def __iter__(self) -> Iterator[Batch]:
        indices = self.indices
        for start in range(0, len(indices), self.batch_size):
            batch = self.split.batch(indices[start : start + self.batch_size])
            if self.numbers is not None and not torch.equal(
                self.item_numbers(batch), self.numbers[batch.index]
            ):
                raise DataError(
                    f"data: items of {self.name} have changed since the run began; a Split must "
                    "always return the same items"
                )
            yield batch.pin() if self.pin_memory else batch
