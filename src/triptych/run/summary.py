"""``summary.json``: the recorded result of a run, the contract with every reader."""

import hashlib
import json
import math
from dataclasses import dataclass, fields
from typing import Any

from triptych.run.plain import number

SCHEMA = 1
ENDED = ("finished", "failed", "diverged")
NULL = ("gradient", "samples")  # said of a finished run, also where there is none
UNITS = {"bpd": "bits/dim", "nats_per_dim": "nats/dim"}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All that the file may say, in plain values, for who writes it and who reads it; None is not said.

    Attributes:
        status: "finished", "failed" or "diverged"; of the last two ``stage`` ("build", "fit" or "test"),
            ``error`` in one line and, where something was not finite, the ``step``.
        parameters, steps: of the model, whoever trained it. seconds: {"fit", "test"}.
        cost: {"memory": most bytes that were in use, on the GPU where there is one, else of the process,
            "evaluations": calls of the denoiser for one sample}.
        weights, checkpoint: those that are reported. averaging: {"reported", "val": figures of the others}.
        data: fingerprint, split and sizes, and whether they changed between two starts.
        train, val, test: {"bpd": {"mean", "stderr", "n"}, "bpd_prior": ..., "gap": ..., ...}.
        noise_levels, weighting, schedule, tweedie: curves, lists by name. estimator: {"mean", "variance"} of
            one draw of the diffusion term. gradient: {"norm": quantiles, "clipped": share}.
        baselines: {"uniform", "histogram": {"mean", "stderr", "n"}}.
        metrics: {name: "higher", "lower" or ""}: which is better, of the figures of the user's own metrics,
            which stand in train, val and test by their names.
        samples: the picture's path. measures, measures_over, measured: of samples, see ``sampling.measure``.
        wandb: {"mode", "files", "sync"}.
        digests: {file: BLAKE2b of its content} of what lies beside a finished result.
    """

    status: str
    name: str | None = None
    overrides: list[str] | None = None
    choices: dict[str, Any] | None = None
    seed: int | None = None
    stage: str | None = None
    error: str | None = None
    step: int | None = None
    parameters: int | None = None
    steps: int | None = None
    seconds: dict[str, float] | None = None
    cost: dict[str, float] | None = None
    device: str | None = None
    world_size: int | None = None
    weights: str | None = None
    checkpoint: str | None = None
    averaging: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    val: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    noise_levels: dict[str, Any] | None = None
    estimator: dict[str, Any] | None = None
    gradient: dict[str, Any] | None = None
    baselines: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    weighting: dict[str, Any] | None = None
    schedule: dict[str, Any] | None = None
    tweedie: dict[str, Any] | None = None
    samples: str | None = None
    measures: dict[str, Any] | None = None
    measures_over: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    wandb: dict[str, Any] | None = None
    digests: dict[str, str] | None = None

    @classmethod
    def of(cls, provenance: dict, status: str, **facts: Any) -> "Summary":
        """Of the run that ``provenance`` is of."""
        about = {"overrides": provenance.get("overrides", []), "choices": provenance.get("choices", {})}
        return cls(status=status, **about, **facts)

    @classmethod
    def read(cls, record: Any) -> "Summary":
        """What a file says, as it says it; keys that are not ours are passed over.

        Raises:
            ValueError: it is of another schema, no summary, or not as it was written (``check_seal``).
        """
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
        if record.get("schema") != SCHEMA:
            raise ValueError(f"schema {record.get('schema')!r}, this reader knows {SCHEMA}")
        if record.get("status") not in ENDED:
            raise ValueError(f"status {record.get('status')!r} is none of {', '.join(ENDED)}")
        check_seal(record)
        known = [field.name for field in fields(cls) if field.name in record]
        return cls(**{name: record[name] for name in known})

    def record(self) -> dict[str, Any]:
        """For the file."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        asked = NULL if self.status == "finished" else ()
        return {"schema": SCHEMA} | {k: v for k, v in said.items() if v is not None or k in asked}


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """A record of strict JSON with the checksum of its content: damage and edits show, forgery does not."""
    return record | {"checksum": _checksum(record)}


def check_seal(record: dict[str, Any]) -> None:
    """Check that a record is as it was written.

    By its checksum; a bound, also where there is none, must have its terms and be their sum.

    Raises:
        ValueError: it is not.
    """
    content = {key: value for key, value in record.items() if key != "checksum"}
    if record.get("checksum", was := _checksum(content)) != was:
        raise ValueError("checksum: damaged or edited after it was written")
    for split in ("train", "val", "test"):
        figures = figures if isinstance(figures := record.get(split), dict) else {}
        for unit in UNITS:
            keys = [unit + term for term in ("", "_prior", "_reconstruction", "_diffusion")]
            entries = [entry if isinstance(entry := figures.get(key), dict) else {} for key in keys]
            if unit in figures and not all(entry.keys() >= {"mean", "stderr", "n"} for entry in entries):
                raise ValueError(f"{split}.{unit}: the mean, stderr or n of it or of a term is missing")
            total, *terms = [number(entry.get("mean")) for entry in entries]
            whole = sum(terms)
            if math.isfinite(total - whole) and not math.isclose(total, whole, rel_tol=1e-4, abs_tol=1e-4):
                raise ValueError(f"{split}.{unit}.mean={total:g}: its terms add up to {whole:g}")


def _checksum(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _with_error(figure: dict, least: float = 5e-4) -> str:
    """Four decimals, or as many as an error below ``least`` has digits; one item has no error.

    "0.0771 ± 0.0012", "0.0000132 ± 0.0000021", "0.0771".
    """
    mean, error = number(figure.get("mean")), number(figure.get("stderr"))
    if math.isnan(error):
        return f"{mean:.4f}"
    digits = 1 - math.floor(math.log10(error)) if 0 < error < least else 4
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def one_line(summary: dict, split: str = "test") -> str:
    """The result in one line: the bound and its three terms, with standard errors."""
    split = split if summary.get(split) else "val"  # of a run that was not to read its test set
    figures = figures if isinstance(figures := summary.get(split), dict) else {}
    figures = {key: entry for key, entry in figures.items() if isinstance(entry, dict)}
    mean = {key: number(entry.get("mean")) for key, entry in figures.items()}
    for unit, label in UNITS.items():
        if unit in figures:
            terms = ", ".join(
                f"{term} {mean.get(f'{unit}_{term}', math.nan):.4f}"
                for term in ("prior", "reconstruction", "diffusion")
            )
            value = f"{_with_error(figures[unit], least=0.0)} {label}"
            line = f"{split} bound {value} ({terms}; n = {figures[unit].get('n')})"
            if "gap" in figures:
                line += f", {_with_error(figures['gap'])} above the truth"
            if f"{unit}_ode" in figures:
                ode = figures[f"{unit}_ode"]
                line += f"; by the ODE {_with_error(ode)} on {ode.get('n')} of them"
                if f"{unit}_ode_bound" in figures:
                    line += f", whose bound is {_with_error(figures[f'{unit}_ode_bound'])}"
            return line
    if "accuracy" in figures:
        return (
            f"{split} accuracy {_with_error(figures['accuracy'], least=0.0)} "
            f"(cross-entropy {mean.get('cross_entropy', math.nan):.4f} nats; "
            f"n = {figures['accuracy'].get('n')})"
        )
    return f"{summary.get('status', 'no result')}: {summary.get('error', 'nothing recorded')}"


def figure(summary: dict | None, name: str) -> float | None:
    """A figure by its path, as in ``val.bpd.mean``; None if it is not there."""
    value: Any = summary or {}
    for part in name.split("."):
        value = value.get(part, {}) if isinstance(value, dict) else {}
    return value if isinstance(value, float) else None
