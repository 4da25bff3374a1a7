"""Declare the keys that are passed to classes of other libraries, whose own annotations say too little."""

from collections.abc import Sequence
from typing import Annotated, Literal, TypedDict

from triptych.declare import Count, Ge, Gt, Le, Lt, MinLen, NonNegative, Positive, Role, Unit, Whole

Rate = Annotated[float, Ge(0), Lt(1)]


class Trainer(TypedDict):
    """Arguments of Lightning's Trainer that may be set; ``habits.INSTEAD`` has the reasons for the others."""

    max_steps: Annotated[Count | None, Unit("steps")]
    max_epochs: Annotated[Count | None, Unit("epochs, in place of steps")]
    min_steps: Annotated[Count | None, Unit("steps")]
    val_check_interval: Annotated[Count, Unit("steps")]
    log_every_n_steps: Annotated[Count, Unit("steps"), Role.REPORTING]
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"], Role.MACHINE]
    devices: Annotated[Count | Literal[-1] | str | Annotated[Sequence[int], MinLen(1)], Role.MACHINE]
    num_nodes: Annotated[Count, Role.MACHINE]
    strategy: Annotated[Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"], Role.MACHINE]
    precision: Literal[None, 32, "32-true", "bf16-mixed", "16-mixed"]
    gradient_clip_val: Positive | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    accumulate_grad_batches: Annotated[Count, Unit("batches")]
    overfit_batches: Annotated[Whole, Unit("batches")]
    benchmark: Annotated[bool | None, Role.MACHINE]
    profiler: Annotated[Literal[None, "simple", "advanced", "pytorch"], Role.REPORTING]
    enable_progress_bar: Annotated[bool, Role.REPORTING]
    deterministic: bool | Literal["warn"] | None
    detect_anomaly: bool
    inference_mode: bool
    sync_batchnorm: bool
    limit_train_batches: Annotated[Positive | None, Unit("of an epoch: batches, or a share as 0.1")]
    limit_val_batches: Annotated[Positive | None, Unit("batches, or a share as 0.1")]
    limit_test_batches: Literal[None, 1.0]  # type: ignore[valid-type]  # and no 1, which is one batch
    max_time: Annotated[str | None, Unit("DD:HH:MM:SS")]
    num_sanity_val_steps: Annotated[Literal[-1] | Whole, Unit("batches"), Role.REPORTING]
    enable_model_summary: Annotated[bool | None, Role.REPORTING]


class Optimizer(TypedDict):
    """Arguments common to the optimisers of ``torch.optim``."""

    lr: Annotated[float, Gt(0), Le(10)]
    betas: tuple[Rate, Rate]
    momentum: Rate
    eps: NonNegative
    weight_decay: NonNegative


CLASSES = {"pytorch_lightning.Trainer": Trainer}  # of other packages, with all that they take
