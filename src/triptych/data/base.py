"""The datamodule from which all data derive."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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
from triptych.diffusion.draws import BATCH_DRAWS, Stream, seeded_generator
from triptych.diffusion.mixture import GaussianMixture
from triptych.errors import DataError as DataError


def select_splits(
    values: Tensor, labels: Tensor, rows_by_split: Mapping[str, np.ndarray], levels: int | None
) -> dict[str, Split]:
    """Return {name: Split}: the rows ``rows_by_split[name]`` of values (n, *shape), labels (n,)."""
    return {
        n: Split(values[rows], Condition(label=labels[rows]), levels)
        for n, rows in rows_by_split.items()
    }


def hold_out(pool: np.ndarray, val_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices `pool` into (train, val); validation gets the last `val_size`.

    Raises DataError if nothing is left to train on.
    """
    check_val_size(val_size, len(pool))
    train = len(pool) - val_size
    return pool[:train], pool[train:]


@declared("data", DataError)
class DataModule(pl.LightningDataModule, ABC):
    """Base class of data: fixed splits, and batches in an order that follows from (seed, step).

    A subclass sets name, shape, levels (None: continuous) and num_classes (0: no labels), and
    defines `load`; with conditions other than labels it also defines `conditions`. largest: maximum
    allowed magnitude of continuous values, as noise schedules expect values of about 1. batch_size
    is the global batch, shared among the processes; eval_batch_size is that of each process.
    num_workers: number of threads that decode image files in `setup`, and of training batches
    prepared ahead; with 0 the training thread does both. pin_memory: put batches into page-locked
    memory if there is a GPU. class_names may be set in `load`. Raises DataError for invalid sizes.
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None = None
    num_classes: int = 0
    largest: float = 100.0
    class_names: Sequence[str] = ()  # names of the classes, if they have names
    computed: tuple[str, ...] = ()  # condition parts that a network computes, see `encoders`
    download: bool = False  # whether to download missing files
    embedder: Any = None  # a ``captions.Embedder``, for data that have one
    shown: str = "test"  # the split whose items are shown next to samples; "val" with test=false
    # Name of the condition part in which a cascade's later stages receive this stage's samples.
    known_as: str | None = None

    def __init__(
        self,
        batch_size: Annotated[Count, Role.IDENTITY, Unit("items")] = 128,
        eval_batch_size: Annotated[Count, Role.LOADING, Unit("items")] = 512,
        seed: Annotated[int, Role.LOADING] = 0,
        num_workers: Annotated[Whole, Role.LOADING, Unit("threads")] = 0,
        pin_memory: Annotated[bool, Role.LOADING] = True,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.splits: dict[str, Split] = {}
        self.numbers: dict[str, Tensor] = {}  # {split: a hash of each item}; see ``remember``
        self.augmentations: list[Augmentation] = []  # applied only to training batches
        self.random = BATCH_DRAWS  # draws for augmentations; a run sets it
        # Splits are not padded, so a rank may have no item of a very small split.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Return the splits "train", "val" and "test"; a subclass implements it."""

    def setup(self, stage: str | None = None) -> None:
        """Fill `splits` once, whatever the stage."""
        if self.splits:
            return
        if self.trainer is None:  # otherwise Lightning has called ``prepare_data``
            self.prepare_data()
        self.splits = self.load()

    @property
    def description(self) -> str:
        """One line with the name, classes, item size and splits; available after ``setup``."""
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
        """Names of the encoders of texts and images; all stages of a cascade need equal names."""
        return ()

    def as_condition(self, x: Tensor) -> Tensor:
        """Round samples x (n, *shape) to the data's levels, to condition later stages on them."""
        if self.levels is None:
            return x
        return to_unit(to_level(x, self.levels), self.levels)

    @property
    def condition_split(self) -> str:
        """The split from which samples take their conditions by default."""
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
        """Return the settings of the formula that draws synthetic items; None for other data.

        Seeds and sizes are left out. The settings identify the data in place of the values, whose
        last digits differ between machines.
        """
        return None

    @property
    def mixture(self) -> GaussianMixture | None:
        """The true distribution if it is known, else None."""
        return None

    def train_dataloader(self) -> TrainLoader:
        """Return an endless loader of training batches, from the trainer's current step on."""
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
            random=self.random,
        )

    def _batches_seen(self) -> int:
        if self.trainer is None:
            return 0
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def eval_dataloader(self, split_name: str, limit: int | None = None) -> EvalLoader:
        """Return a loader that visits each item of a split once over all ranks.

        With `limit` it visits only the first `limit` items.
        """
        split, numbers = self.splits[split_name], self.numbers.get(split_name)
        return EvalLoader(split, self.eval_batch_size, limit, self.pin_memory, split_name, numbers)

    def remember(self) -> None:
        """Record a hash of each evaluated item, so that ``EvalLoader`` detects changed items."""
        limits = {name: len(split) for name, split in self.splits.items()}
        limits["train"] = min(limits["train"], limits["test"])
        for name, limit in limits.items():
            if limit:
                # With page-locked memory each process would initialise CUDA on the first GPU, not
                # its own.
                loader = replace(self.eval_dataloader(name, limit), pin_memory=False)
                self.numbers[name] = torch.cat([loader.item_numbers(batch) for batch in loader])

    def val_dataloader(self) -> EvalLoader | Iterable[Any]:
        if not len(self.splits["val"]):
            return []
        return self.eval_dataloader("val")


class OfficialData(DataModule):
    """Base class of data with an official test set; validation is split off the training set.

    Both official sets are first permuted by RandomState(0), so the first items of a split are a
    random sample. Validation gets the last `val_size` training items.
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
        """Split the official sets, each given as (values (n, *shape) uint8, labels (n,) int64)."""
        order = np.random.RandomState(0).permutation(len(train[0]))
        test_order = np.random.RandomState(0).permutation(len(test[0]))
        trained, held_out = hold_out(order, self.val_size)
        splits = select_splits(*train, {"train": trained, "val": held_out}, self.levels)
        return splits | select_splits(*test, {"test": test_order}, self.levels)


class SyntheticData(DataModule):
    """Base class of synthetic data, drawn by a formula; by default the items are points (d,).

    Each split has its own seed, which follows from data_seed. So the test set does not depend on
    the run's seed or on the sizes of the other splits.
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
