"""How far a run's samples, and its posterior mean, are from the truth, and the truth from itself.

Sets of items are drawn chunk by chunk: processes share the chunks, and what is read of each outlives a kill.
A chunk holds about a million numbers and draws from a generator of its own, so samples are the same on any
number of processes. Only features are kept, in files that the first process measures.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor, nn

from triptych.callbacks.metrics import BETTER
from triptych.data.order import rank_world
from triptych.diffusion.condition import AUGMENTATION
from triptych.diffusion.draws import Stream, mix, seeded
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.sampler import chunk_size
from triptych.diffusion.tweedie import tweedie_errors
from triptych.errors import Diverged, UserError
from triptych.models.condition_bits import never_dropped
from triptych.run.checkpoints import read_tensors, save_checkpoint
from triptych.run.directory import RunDirectory, log_line
from triptych.run.drawing import Drawing, Experiment, choose

FOLDER = "features"  # of a run's directory, until its result is recorded
LEVELS, POINTS = 20, 1000  # of noise and of items, at which Tweedie's formula is measured
_read = partial(read_tensors, kind="a chunk")


class Features:
    """What was read of each item of a set, by name; of the items ``rows`` (m,) of it, None for all."""

    def __init__(self, chunks: Sequence[Path], rows: Tensor | None = None):
        self.chunks, self.rows = chunks, rows

    def subset(self, rows: Tensor) -> "Features":
        return Features(self.chunks, rows)

    def __getitem__(self, name: str) -> Tensor:
        """Read all of one name, (n, ...), into memory."""
        whole = torch.cat([_read(path)[name] for path in self.chunks])
        return whole if self.rows is None else whole[self.rows]

    def parts(self, name: str) -> Iterator[Tensor]:
        """Yield the same in the order of chunks, one at a time."""
        start = 0
        for path in self.chunks:
            part = _read(path)[name]
            here = torch.arange(len(part)) if self.rows is None else self.rows - start
            start += len(part)
            yield part[here[(here >= 0) & (here < len(part))]]


class Chunks:
    """The chunks of all sets that a run measures, in a ``folder`` that its processes share.

    ``read``: items x (k, *shape) -> features, (k, ...) each. ``finite``: whether all items read here were.
    """

    def __init__(self, folder: Path, shape: Sequence[int], read: Callable[[Tensor], dict[str, Tensor]]):
        self.folder, self.size, self.read, self.finite = folder, chunk_size(shape), read, True
        self._turn, (self._rank, self._world) = 0, rank_world()

    def fill(self, name: str, n: int, items: Callable[[Tensor, int], Tensor]) -> Features:
        """Read this process's chunks of a set of n items, but those that are on disk.

        ``items``: places in the set (k,) and the number of their chunk -> x (k, *shape).
        """
        paths = []
        for chunk, rows in enumerate(torch.arange(n).split(self.size)):
            paths.append(path := self.folder / f"{name}_{chunk}.pt")
            self._turn += 1  # over all sets, as many have a single chunk
            if self._turn % self._world == self._rank and self.finite and not _holds(path, len(rows)):
                x = items(rows, chunk)
                self.finite = bool(x.isfinite().all())
                if self.finite:
                    save_checkpoint(self.read(x), path)
        return Features(paths)


def folder_of_chunks(run: Path, key: str) -> Path:
    """Return the folder of a run's chunks, those of another ``key`` removed by its first process."""
    for folder in (run / FOLDER).glob("*") if rank_world()[0] == 0 else ():
        if folder.name != key:
            shutil.rmtree(folder, ignore_errors=True)
    return run / FOLDER / key


def chunk_seed(chunk: int, *numbers: int) -> int:
    """Mix ``numbers`` and the number of a chunk; the first one's seed is that of a whole set."""
    return mix(*numbers, chunk) if chunk else mix(*numbers)


def weights_digest(modules: Iterable[Any], code: str) -> str:
    """Hash all tensors of modules, names and values, and what ``code`` they run under."""
    digest = hashlib.blake2b(code.encode(), digest_size=8)
    for module in modules:
        for name, value in module.state_dict().items() if isinstance(module, nn.Module) else ():
            digest.update(name.encode())
            if isinstance(value, Tensor):
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _holds(path: Path, n: int) -> bool:
    try:
        return path.exists() and all(len(x) == n for x in _read(path).values())
    except (UserError, TypeError, AttributeError):  # damaged
        return False


Sets = list[dict[int, Features]]  # of each value of ``measures.over``, by repeat


def draw_sets(experiment: Experiment, run: RunDirectory, strategy: Strategy, step: int = 0) -> Sets | None:
    """Draw what ``measures`` asks for, each process its chunks; None if that is nothing.

    Chunks of the same weights, data, code and packages are not drawn again. Diverged, in all processes: a
    sample of the model of ``step`` is not finite.
    """
    node, reference = experiment.config["measures"], experiment.reference
    if reference is None:
        return None
    folder = folder_of_chunks(run.path, strategy.broadcast(_key(experiment, run)))
    chunks = Chunks(folder, experiment.data.shape, reference.read)
    experiment.model.to(strategy.root_device)  # from where Lightning has taken it
    reference.fill(chunks, strategy.root_device)
    over = node["over"] if isinstance(node["over"], str | None) else node["over"][0]
    sets: Sets = []
    for row, (value, drawing) in enumerate(experiment.measured):
        drawing = drawing.calibrated()
        sets.append({})
        for repeat in range(node["repeats"]):
            trained, classes, untrained = _conditions(experiment, drawing, repeat)
            items = drawing.held_out(node["n"]) if trained is None else trained
            kinds = (repeat, items, classes), (node["repeats"] + repeat, untrained, None)
            for place, some, labels in kinds:
                if some is not None:
                    draw = partial(_draw, drawing, some, labels, experiment.config["seed"], place)
                    name = f"samples_{row}_{place}"
                    sets[row][place] = chunks.fill(name, len(some), draw)
        if not strategy.reduce_boolean_decision(chunks.finite):
            raise Diverged("a sample" if over is None else f"a sample with {over}={value}", step)
    experiment.model.cpu()
    return sets


def _key(experiment: Experiment, run: RunDirectory) -> str:
    """Return what samples and features follow from, beside the run's configuration."""
    reference = experiment.reference
    judges = [getattr(reference, name, None) for name in ("classifier", "inception")]
    judges.append(getattr(getattr(reference.prompts, "embedder", None), "network", None))
    networks = dict.fromkeys(one for _, drawing in experiment.measured for one in _modules(drawing))
    start = run.provenance.last
    about = json.dumps([start.sources, start.versions, start.data])
    return weights_digest([*networks, *judges], about)


def _modules(drawing: Drawing) -> Iterator[Any]:
    yield from (drawing.model, drawing.denoiser)
    for stage in drawing.stages.values():
        yield from _modules(stage)


def _draw(
    drawing: Drawing, items: Tensor, classes: Tensor | None, seed: int, place: int, rows: Tensor, chunk: int
) -> Tensor:
    mixed = chunk_seed(chunk, seed, Stream.MEASURED_SAMPLES, place)
    labels = None if classes is None else classes[rows]
    return drawing.samples(len(rows), mixed, items[rows], labels)


def measure_samples(experiment: Experiment, sets: Sets, run: RunDirectory) -> dict[str, Any]:
    """Measure the sets that were drawn, for ``summary.json``.

    {"measures": {name: {"mean", "stderr", "n"}}, "measured": {"n", "repeats", "reference", "floor",
    "noise", "metrics", "files"}}, or with ``over`` {"measures_over": {"key", "rows": [{"value",
    "evaluations", "measures"}]}, "measured"}. ``stderr`` is over ``repeats`` sets of ``n`` samples each.
    """
    node, reference = experiment.config["measures"], experiment.reference
    trained, classes, _ = _conditions(experiment, experiment.measured[0][1], 0)
    about = {
        "n": node["n"],
        "repeats": node["repeats"],
        "reference": reference.name,
        "floor": reference.floor(classes is not None),
        "noise": reference.noise(classes, trained),
        "metrics": {
            name: {"title": m.title or name, "unit": m.unit, "better": BETTER[m.higher_is_better]}
            for name, m in reference.own.items()
        },
        **({"files": reference.files} if reference.files else {}),
    }
    over = node["over"] if isinstance(node["over"], str | None) else node["over"][0]
    rows = [
        {"value": value}
        | _row(experiment, drawing, of_row, run, "" if over is None else f" with {over}={value}")
        for (value, drawing), of_row in zip(experiment.measured, sets, strict=True)
    ]
    if over is None:
        return {"measures": rows[0]["measures"], "measured": about}
    return {"measures_over": {"key": over, "rows": rows}, "measured": about}


def _row(
    experiment: Experiment, drawing: Drawing, sets: dict[int, Features], run: RunDirectory, at: str
) -> dict[str, Any]:
    node, reference = experiment.config["measures"], experiment.reference
    figures, sizes = [], {}
    for repeat in range(node["repeats"]):
        drawn = sets[repeat]
        trained, classes, untrained = _conditions(experiment, drawing, repeat)
        figures.append(reference.compare(drawn, classes, repeat))
        if trained is not None:
            figures[-1] |= reference.prompted(drawn, trained)
        if untrained is not None:
            shares = reference.prompted(sets[node["repeats"] + repeat], untrained)
            unseen = {f"{name}_held_out": share for name, share in shares.items()}
            figures[-1] |= unseen
            sizes = dict.fromkeys(unseen, len(untrained))
    for name in reference.own:
        if (some := sum(math.isfinite(f[name]) for f in figures)) < len(figures):
            log_line(run, f"metric {name}: {some} of {len(figures)} sets of samples{at} have a value")
    sizes = dict.fromkeys(figures[0], node["n"]) | sizes
    return {
        "evaluations": drawing.sampler.calls_under(drawing.model.schedule),
        "measures": {name: _figure([f[name] for f in figures], n) for name, n in sizes.items()},
    }


def _conditions(experiment: Experiment, drawing: Drawing, repeat: int) -> tuple[Tensor | None, ...]:
    """Choose items whose captions are prompts: n of classes trained on, half as many of others, over again.

    Between these the classes (n,) of samples without a caption; None each where there are no such. Where
    labels are all that is read, the classes are a true set's: an exact sampler then draws another such set,
    and is as far from the data as the floor.
    """
    n, reference = experiment.config["measures"]["n"], experiment.reference
    prompts = None if reference is None else reference.prompts
    items: list[Tensor | None] = [None, None]
    if prompts is not None and drawing.conditional and not drawing.class_conditional:
        places = [kind.nonzero().squeeze(1) for kind in (~prompts.untrained, prompts.untrained)]
        items = [p[choose(k, len(p))] if len(p) else None for p, k in zip(places, (n, n // 2), strict=True)]
    trained, untrained = items
    if trained is not None or not drawing.conditional:
        return trained, None, untrained
    if drawing.class_conditional:
        labels, rows = reference.true_set(repeat)[1], torch.arange(n)
    else:
        labels, rows = drawing.data.splits[drawing.data.condition_split].labels, drawing.held_out(n)
    return None, None if labels is None else labels[rows % len(labels)], untrained


def _figure(values: list[float], n: int) -> dict[str, Any]:
    mean = sum(values) / len(values)
    spread = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
    stderr = math.sqrt(spread / len(values)) if len(values) > 1 else math.nan
    finite = {"mean": mean, "stderr": stderr}  # a metric of one's own may have no figure of a set
    return {name: x if math.isfinite(x) else None for name, x in finite.items()} | {"n": n}


def measure_posterior_mean(experiment: Experiment) -> dict[str, Any]:
    """Measure {"tweedie": {"gamma", "excess", "stderr", "spread"}}, squares per dimension, or {}.

    Excess: from the model's score to the oracle's mean; spread: the posterior's own variance. {} without a
    truth, or where training never left out the condition: points of the ``shown`` split have none here.
    """
    model, data, denoiser = experiment.model, experiment.data, experiment.model.denoiser
    if data.mixture is None or denoiser is None or model.of_latents or not len(data.splits[data.shown]):
        return {}
    if never_dropped(model.label_dropout, {*denoiser.conditions} - {AUGMENTATION}):
        return {}
    truth = data.mixture.to(model.device)
    oracle = Oracle(truth, denoiser.process)
    low, high = model.schedule.gamma(torch.tensor([0.0, 1.0], device=model.device)).tolist()
    split = data.splits[data.shown]
    x = split.batch(torch.arange(min(POINTS, len(split)))).x.to(model.device)
    generator = seeded(experiment.config["seed"], Stream.POSTERIOR_MEAN)
    with torch.no_grad():
        gammas = torch.linspace(low, high, LEVELS, device=model.device)
        return {"tweedie": tweedie_errors(denoiser, oracle, x, gammas, generator)}
