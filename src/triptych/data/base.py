"""The datamodule from which all data derive."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from triptych.data.augment import Augmentation
from triptych.data.batch import Split, to_level, to_unit
from triptych.data.order import EvalLoader, TrainLoader, TrainOrder, rank_world
from triptych.data.source import check_val_size, require_folder
from triptych.declare import Count, FilePath, Role, Unit, Whole, declared
from triptych.diffusion.condition import Condition, Kind, Labels
from triptych.diffusion.draws import Stream, seeded_generator
from triptych.diffusion.mixture import GaussianMixture
from triptych.errors import DataError as DataError


def select_splits(
    values: Tensor, labels: Tensor, rows_by_split: Mapping[str, np.ndarray], levels: int | None
) -> dict[str, Split]:
    """Return {name: Split} of rows ``rows_by_split[name]`` of values (n, *shape), labels (n,)."""
    return {
        n: Split(values[rows], Condition(label=labels[rows]), levels)
        for n, rows in rows_by_split.items()
    }


def hold_out(pool: np.ndarray, val_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the permuted `pool` into (train, val): validation gets the last `val_size` items.

    DataError: nothing is left to train on.
    """
    check_val_size(val_size, len(pool))
    train = len(pool) - val_size
    return pool[:train], pool[train:]


@declared("data", DataError)
class DataModule(pl.LightningDataModule, ABC):
    """Fixed splits, batches in an order that follows from (seed, step).

    A subclass sets name, shape, levels (None: continuous) and num_classes (0: no labels), and
    defines `load`; one with conditions other than labels gives `conditions` too. largest: how far
    from 0 values of a density may lie, as noise schedules are made for about 1. batch_size is
    global, shared among the processes; eval_batch_size is each process's own; num_workers: threads
    that decode image files in setup, and so many training batches are prepared ahead; 0: in the
    thread that trains. pin_memory: batches in page-locked memory, where there is a GPU to copy to.
    class_names may be set in `load`. DataError on bad sizes.
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None = None
    num_classes: int = 0
    largest: float = 100.0
    class_names: Sequence[str] = ()  # names of the classes, if they have names
    computed: tuple[str, ...] = ()  # parts of conditions that a network computes, see `encoders`
    download: bool = False  # whether missing files are fetched
    embedder: Any = None  # a ``captions.Embedder``, for data that have one
    shown: str = "test"  # the split whose items are shown next to samples; "val" with test=false
    known_as: str | None = None  # condition part of later stages that these items provide

    def __init__(
        self,
        batch_size: Annotated[Count, Role.IDENTITY, Unit("items")] = 128,
        eval_batch_size: Annotated[Count, Role.LOADING, Unit("items")] = 512,
        seed: Annotated[int, Role.LOADING] = 0,
        num_workers: Annotated[Whole, Role.LOADING, Unit("threads")] = 0,
        pin_memory: Annotated[bool, Role.LOADING] = False,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.splits: dict[str, Split] = {}
        self.numbers: dict[str, Tensor] = {}  # a hash of each item, by split; see ``remember``
        self.augmentations: list[Augmentation] = []  # applied only to training batches
        # Splits are not padded, so a rank may have no item of a very small split.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Return the splits "train", "val" and "test"; a subclass implements it."""

    def setup(self, stage: str | None = None) -> None:
        """Fill `splits` once, whatever the stage."""
        if self.splits:
            return
        if self.trainer is None:  # otherwise Lightning has called it
            self.prepare_data()
        self.splits = self.load()

    @property
    def description(self) -> str:
        """Name, classes, size of an item and splits, in one line; after ``setup``."""
        facts = [self.name]
        if self.num_classes:
            facts.append(f"{self.num_classes} classes{self._first_class_names()}")
        if len(self.shape) == 3:
            channels, height, width = self.shape
            facts.append(f"{height}x{width}x{channels}")
        else:
            facts.append(f"{math.prod(self.shape)} numbers an item")
        facts.append(" / ".join(f"{len(split)} {name}" for name, split in self.splits.items()))
        groups = self.splits["test"].groups
        if groups is not None:
            facts.append(f"test in {len(groups.unique())} groups")
        return ", ".join(facts)

    def _first_class_names(self) -> str:
        if not self.class_names:
            return ""
        return f" ({', '.join(self.class_names[:10])})"

    @property
    def conditions(self) -> dict[str, Kind]:
        """The parts of a batch's condition: {name: kind}; {} for data without conditions."""
        return {"label": Labels(self.num_classes)} if self.num_classes else {}

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders that turn texts and images into conditions.

        The stages of a cascade have the same.
        """
        return ()

    def as_condition(self, x: Tensor) -> Tensor:
        """Round samples x (n, *shape) to the data's levels, to condition later stages on them."""
        if self.levels is None:
            return x
        return to_unit(to_level(x, self.levels), self.levels)

    @property
    def condition_split(self) -> str:
        """The split whose conditions samples are drawn for by default."""
        return "val" if len(self.splits["val"]) else "train"

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """Encode prompts as a condition, one item each.

        DataError: the data have no captions, or a prompt cannot be encoded.
        """
        raise DataError(
            f"prompt={prompts[0]!r}: data {self.name} have no captions; pass a model of captioned "
            "data"
        )

    def formula(self) -> dict[str, Any] | None:
        """Return the settings of the formula that draws the items; None if they are from files.

        Seeds and sizes are left out. The settings identify the data in place of the values, because
        the last digits of the values differ between machines.
        """
        return None

    @property
    def mixture(self) -> GaussianMixture | None:
        """The true distribution, where it is known."""
        return None

    def train_dataloader(self) -> TrainLoader:
        """Return an endless loader of training batches that goes on where the trainer stopped."""
        rank, world = rank_world()
        train = self.splits["train"]
        order = TrainOrder(len(train), self.batch_size, self.seed)
        repeat = int(getattr(self.trainer, "overfit_batches", 0))
        return TrainLoader(
            train,
            order,
            first=self._batches_seen,
            rank=rank,
            world=world,
            pin_memory=self.pin_memory,
            repeat=repeat,
            changes=self.augmentations,
            ahead=self.num_workers,
        )

    def _batches_seen(self) -> int:
        if self.trainer is None:
            return 0
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def eval_dataloader(self, split_name: str, limit: int | None = None) -> EvalLoader:
        """Return a loader that visits each item of a split once over all ranks.

        `limit`: it visits that many first items alone.
        """
        split, numbers = self.splits[split_name], self.numbers.get(split_name)
        return EvalLoader(split, self.eval_batch_size, limit, self.pin_memory, split_name, numbers)

    def remember(self) -> None:
        """Record a number for each evaluated item, so that ``EvalLoader`` detects changes."""
        limits = {name: len(split) for name, split in self.splits.items()}
        limits["train"] = min(limits["train"], limits["test"])
        for name, limit in limits.items():
            if limit:
                loader = self.eval_dataloader(name, limit)
                self.numbers[name] = torch.cat([batch.numbers() for batch in loader])

    def val_dataloader(self) -> EvalLoader | Iterable[Any]:
        if not len(self.splits["val"]):
            return []
        return self.eval_dataloader("val")


class OfficialData(DataModule):
    """Test: the official one. Validation: the last `val_size` of the official training set.

    Both are permuted by RandomState(0) first, so that any first few are a fair sample.
    """

    levels = 256

    def __init__(
        self,
        root: Annotated[FilePath | None, Role.PATH],
        val_size: Annotated[Whole, Role.SPLIT, Unit("items")] = 5000,
        download: Annotated[bool, Role.LOADING] = False,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.root, self.download = require_folder(root), download
        self.val_size = val_size

    def split(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, Split]:
        """Split two official parts, each (values (n, *shape) uint8, labels (n,) int64)."""
        order = np.random.RandomState(0).permutation(len(train[0]))
        test_order = np.random.RandomState(0).permutation(len(test[0]))
        trained, held_out = hold_out(order, self.val_size)
        splits = select_splits(*train, {"train": trained, "val": held_out}, self.levels)
        return splits | select_splits(*test, {"test": test_order}, self.levels)


class SyntheticData(DataModule):
    """Items that a formula draws, by default points (d,).

    Each split has a seed of its own, which follows from data_seed.
    So the test set stays the same whatever the run's seed and the other sizes are.
    """

    def __init__(
        self,
        train_size: Annotated[Count, Role.SPLIT, Unit("items")] = 20000,
        val_size: Annotated[Whole, Role.SPLIT, Unit("items")] = 2000,
        test_size: Annotated[Count, Role.JUDGED, Unit("items")] = 5000,
        data_seed: Annotated[int, Role.JUDGED] = 0,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        self.data_seed = data_seed

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw (x (n, d), labels (n,) int64 or None); a subclass implements it."""
        raise NotImplementedError("draw() is not defined")

    def load(self) -> dict[str, Split]:
        splits = {}
        for stream, (name, n) in enumerate(self.sizes.items()):
            # Draw at least one, as torch.multinomial refuses 0.
            x, labels = self.draw(
                max(n, 1), seeded_generator(self.data_seed, Stream.POINTS, stream)
            )
            condition = None if labels is None else Condition(label=labels[:n])
            splits[name] = Split(x[:n].float(), condition)
        return splits
