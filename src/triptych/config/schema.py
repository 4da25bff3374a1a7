"""Declare the top-level keys of each command: type, range, unit and role.

Defaults and comments are in ``configs/``. The keys of a group with a ``_target_`` are the arguments
of that class; for such a group, this module declares only the base class and the role.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from annotated_types import Ge, Gt, Le, Lt, MinLen

from triptych.declare import (
    ClassName,
    Count,
    FilePath,
    NonNegative,
    Positive,
    Role,
    Seed,
    Steps,
    Unit,
    Whole,
)


@dataclass(frozen=True)
class Base:
    """The base class that a group's ``_target_`` must have: ``target`` or one of ``others``.

    A group without ``_target_`` has the arguments of ``target`` as keys.
    """

    target: str
    others: tuple[str, ...] = ()


Group = dict[str, Any]  # a group whose keys are the arguments of its class
Samples = Annotated[int, Ge(0), Le(1_000_000), Unit("samples")]
Repeats = Annotated[int, Ge(1), Le(1_000_000), Unit("draws per item")]
DrawsName = Literal["batch", "blocks"]  # a stream of random numbers
Threads = Annotated[int, Ge(1), Le(1024), Unit("cores")]


class _Wandb(TypedDict):
    mode: Literal["auto", "online", "offline", "disabled"]
    project: str | None
    entity: str | None
    name: str | None
    group: str | None
    job_type: str | None
    tags: str | Sequence[str] | None
    notes: str | None
    artifacts: bool


class _MLflow(TypedDict):
    tracking_uri: str | None
    experiment: str


class _Data(TypedDict):
    batch_size: Annotated[Count, Role.IDENTITY, Unit("items")]


class _Network(TypedDict):  # the groups ``denoiser`` and ``model``
    network: Annotated[Group, Base("torch.nn.Module")]


class _Objective(TypedDict):
    output: Annotated[Group, Base("torch.nn.Module")]
    loss: Annotated[Group, Base("triptych.diffusion.loss.Loss")]
    times: NotRequired[Annotated[Group, Base("triptych.diffusion.times.Times")]]


Decoders = Literal["categorical", "discretised_gaussian", "gaussian_density"] | ClassName
Variances = Literal["beta_tilde", "beta", "optimal", "learned"] | ClassName


class _Bound(TypedDict):
    decoder: Decoders | Annotated[Group, Base("triptych.diffusion.decoder.Decoder")]
    variance: (
        Variances | Annotated[Group, Base("triptych.diffusion.reverse_variance.ReverseVariance")]
    )
    repeats: Repeats
    val_repeats: Repeats


class _Likelihood(TypedDict):
    items: Annotated[Count, Unit("items")]


class _Samples(TypedDict):
    n: Samples
    pictures: Whole


class _Measures(TypedDict):
    n: Literal[0] | Annotated[int, Ge(8), Le(1_000_000), Unit("samples")]
    repeats: Annotated[int, Ge(1), Le(1_000_000)]
    classifier: FilePath | None
    inception: FilePath | None
    statistics: NotRequired[FilePath | None]
    contrastive: NotRequired[FilePath | None]
    over: str | list[str] | None
    values: Sequence[Any]


class _Paths(TypedDict):
    root_dir: Annotated[FilePath, Role.OUTPUT]
    log_dir: Annotated[FilePath, Role.OUTPUT]
    data_dir: FilePath


Rate = Annotated[float, Ge(0), Lt(1)]


class Trainer(TypedDict):
    """The arguments of Lightning's Trainer that may be set; ``habits.HABITS`` explains the rest."""

    max_steps: Annotated[Count | None, Unit("steps")]
    max_epochs: Annotated[Count | None, Unit("epochs, in place of steps")]
    min_steps: Annotated[Count | None, Unit("steps")]
    val_check_interval: Annotated[Count, Unit("steps")]
    log_every_n_steps: Annotated[Count, Unit("steps"), Role.REPORTING]
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"], Role.MACHINE]
    devices: Annotated[
        Count | Literal[-1] | str | Annotated[Sequence[int], MinLen(1)], Role.MACHINE
    ]
    num_nodes: Annotated[Count, Role.MACHINE]
    strategy: Annotated[
        Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"], Role.MACHINE
    ]
    precision: Literal[None, 32, "32-true", "bf16-mixed", "16-mixed"]
    tf32: bool
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
    limit_train_batches: Annotated[
        Positive | None, Unit("batches of an epoch, or a fraction as 0.1")
    ]
    limit_val_batches: Annotated[Positive | None, Unit("batches, or a fraction as 0.1")]
    limit_test_batches: Literal[None, 1.0]  # type: ignore[valid-type]  # the integer 1 would mean one batch
    max_time: Annotated[str | None, Unit("DD:HH:MM:SS")]
    num_sanity_val_steps: Annotated[Literal[-1] | Whole, Unit("batches"), Role.REPORTING]
    enable_model_summary: Annotated[bool | None, Role.REPORTING]


class Optimizer(TypedDict):
    """Arguments common to the optimisers of ``torch.optim``, for the table of signatures."""

    lr: Annotated[float, Gt(0), Le(10)]
    betas: tuple[Rate, Rate]
    momentum: Rate
    eps: NonNegative
    weight_decay: NonNegative


LOGGER = "pytorch_lightning.loggers.Logger"


class _Logger(TypedDict):
    csv: bool | None
    wandb: Annotated[_Wandb | None, Base(LOGGER)]
    tensorboard: bool | None
    mlflow: Annotated[_MLflow | None, Base(LOGGER)]


class DrawingKeys(TypedDict):
    """Keys that determine how samples are drawn; runs of earlier versions lack some of them."""

    sampler: Annotated[Group, Base("triptych.diffusion.sampler.base.Sampler"), Role.DRAWING]
    guidance: NotRequired[
        Annotated[Group, Base("triptych.diffusion.wrappers.Wrapper"), Role.DRAWING]
    ]
    threshold: NotRequired[
        Annotated[Group, Base("triptych.diffusion.wrappers.Wrapper"), Role.DRAWING]
    ]
    guide: Annotated[FilePath | None, Role.DRAWING]
    condition_from: NotRequired[Annotated[dict[str, str], Role.DRAWING]]


class ModelKeys(TypedDict):
    """Keys of the model, its training and its evaluation; trained=DIR copies them from a run."""

    data: Annotated[_Data, Base("triptych.data.base.DataModule"), Role.DATA]
    schedule: Annotated[Group, Base("triptych.diffusion.schedule.Schedule")]
    process: Annotated[Group, Base("triptych.diffusion.process.Process")]
    denoiser: Annotated[_Network, Base("triptych.diffusion.denoiser.Denoiser")]
    objective: Annotated[_Objective, Base("triptych.diffusion.objective.Objective")]
    model: Annotated[_Network, Base("triptych.models.base.BoundModel")]
    bound: Annotated[_Bound, Base("triptych.diffusion.bound.Bound")]
    likelihood: NotRequired[
        Annotated[_Likelihood, Base("triptych.diffusion.likelihood.Likelihood")]
    ]
    optimizer: Annotated[Group, Base("torch.optim.Optimizer")]
    lr_schedule: Annotated[
        Group,
        Base("triptych.models.lr_schedule.Constant", ("torch.optim.lr_scheduler.LRScheduler",)),
    ]
    weights: Literal["ema", "raw", "chosen"]
    checkpoint: Literal["last", "best"]


class PaperClaim(TypedDict):
    """One claim of a published table.

    ``study/papers/claim.py`` describes its keys.
    """

    says: str
    kind: NotRequired[Literal["identity", "exact", "trained"]]
    table: NotRequired[int | str]
    figure: NotRequired[int | str]
    section: NotRequired[int | float | str]
    quote: NotRequired[str]
    published: NotRequired[dict[str, float | str]]
    otherwise: NotRequired[str]
    untestable: NotRequired[str]
    counts_as: NotRequired[Literal["could fail", "nearly forced", "control"]]
    contradicted_by: NotRequired[str]
    control: NotRequired[Literal["ingredient", "reversal"]]
    reason: NotRequired[str]
    relabelled: NotRequired[str]
    note: NotRequired[str]
    scale: NotRequired[Literal["small", "paper"]]
    metric: NotRequired[str]
    compare: NotRequired[str]
    at: NotRequired[dict[str, Any]]
    order: NotRequired[Sequence[Any]]
    same: NotRequired[Sequence[Any]]
    value: NotRequired[dict[Any, float]]
    diverges: NotRequired[Sequence[Any]]
    beyond: NotRequired[Annotated[float, Gt(1)]]
    by: NotRequired[NonNegative]
    by_factor: NotRequired[Annotated[float, Ge(1)]]
    within: NotRequired[Positive]
    within_factor: NotRequired[Annotated[float, Gt(1)]]


class PaperNode(TypedDict):
    """A published table or figure, and its claims."""

    cite: str
    where: str
    arxiv: NotRequired[str]
    minutes: Annotated[Positive, Unit("minutes on two cores")]
    differs: NotRequired[Sequence[str]]
    discarded_seeds: NotRequired[Sequence[int]]
    claims: dict[str, PaperClaim]


class Train(ModelKeys, DrawingKeys):
    """Keys of ``triptych-train``; those without ``NotRequired`` are in every recorded run."""

    stages: NotRequired[Annotated[dict[str, Group], Role.DRAWING]]
    augmentation: NotRequired[
        dict[str, Annotated[Group | None, Base("triptych.data.augment.Augmentation")]]
    ]
    compile: NotRequired[Annotated[bool, Role.MACHINE]]
    draws: NotRequired[Annotated[Literal["auto"] | DrawsName, Role.MACHINE]]
    trainer: Annotated[Trainer, Base("pytorch_lightning.Trainer")]
    callbacks: dict[str, Annotated[Group | None, Base("pytorch_lightning.Callback")]]
    metrics: NotRequired[
        Annotated[dict[str, Annotated[Group | None, Base("torchmetrics.Metric")]], Role.REPORTING]
    ]
    logger: Annotated[
        _Logger | dict[str, Annotated[Group | None, Base(LOGGER)]] | None, Role.REPORTING
    ]
    paths: NotRequired[Annotated[_Paths, Role.PATH]]
    name: Annotated[str | int | None, Role.LABEL]
    setting: str | int | float | None
    scale: NotRequired[Literal["small", "paper"]]
    paper: NotRequired[Annotated[PaperNode | None, Role.START]]
    seed: Annotated[Seed, Role.SEED]
    cores: Annotated[int, Ge(1), Le(1024), Role.START]
    threads: Annotated[Threads, Role.MACHINE]
    samples: Annotated[_Samples, Role.DRAWING]
    measures: Annotated[_Measures, Role.DRAWING]
    trained: FilePath | None
    init_from: NotRequired[FilePath | None]
    init_partial: NotRequired[bool]
    test: bool
    optimized_metric: Annotated[str, Role.REPORTING]
    plan: Annotated[bool, Role.START]
    until: Annotated[Literal[None, "decided"], Role.START]
    max_seeds: Annotated[int, Ge(2), Role.START]
    equal_within: Annotated[Positive | None, Unit("the bound's unit"), Role.START]
    force: Annotated[bool, Role.START]
    retry: Annotated[bool, Role.START]
    # These keys are not recorded with a run: they set other keys, or only the command reads them.
    resume: NotRequired[Annotated[FilePath, Role.START]]
    ablation: NotRequired[Annotated[Any, Role.LABEL]]
    experiment: NotRequired[Annotated[Any, Role.LABEL]]
    hparams_search: NotRequired[Annotated[Any, Role.LABEL]]
    local: NotRequired[Annotated[Any, Role.REPORTING]]
    tags: NotRequired[Annotated[Any, Role.REPORTING]]
    hydra: NotRequired[Annotated[Any, Role.REPORTING]]


class Evaluate(TypedDict):
    """Keys of ``triptych-evaluate``."""

    ckpt: FilePath
    split: Literal["train", "val", "test"]
    weights: str | None
    repeats: Repeats | None
    steps: Steps | Literal[None, "run"]
    variance: Variances | None
    batch_size: Annotated[Count | None, Unit("items")]
    devices: Count
    threads: Threads | None
    data_root: FilePath | None
    out: FilePath | None
    items: FilePath | None


class Sample(DrawingKeys):
    """Keys of ``triptych-sample``."""

    ckpt: FilePath
    cascade: Sequence[FilePath] | None
    stages: Sequence[Group]
    noise: Annotated[float, Ge(0), Lt(1)]
    prompt: str | Sequence[str] | None
    n: Annotated[int, Ge(1), Le(1_000_000), Unit("samples")]
    seed: Seed
    batch_size: Annotated[Count, Unit("samples")]
    label: bool | int | float | str | None  # checked later, as the checkpoint defines the classes
    like: Sequence[Whole] | None
    weights: str | None
    threads: Threads | None
    data_root: FilePath | None
    trajectory: Literal[None, "strip"]
    out: FilePath


COMMANDS = {"train": Train, "evaluate": Evaluate, "sample": Sample}
