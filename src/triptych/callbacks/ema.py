"""Average the network's parameters over steps, with several lengths; validate with one average.

A profile is the weight that the parameters of each step have in the average at step n. Profiles are
power functions (EDM2, Karras et al. 2024, section 3, app. C) or an exponential. The power function

    p(tau) = (gamma + 1) tau^gamma / n^(gamma + 1),   0 < tau <= n,

becomes wider as the run goes on: for every n, its standard deviation is the share sigma_rel of n,
and the initial parameters have no weight. The running average

    average <- beta_n average + (1 - beta_n) parameters,   beta_n = (1 - 1 / n)^(gamma + 1),

has exactly this profile: the weight of step i is (i^(gamma + 1) - (i - 1)^(gamma + 1)) / n^(gamma +
1), the integral of p over the step.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from triptych.declare import Positive, Unit, Whole, declared

SNAPSHOTS = "averages"  # folder of the snapshots in a run's directory
POWER = "sigma_rel_"  # prefix of the names of averages with power-function profiles
LONGEST = 1 / math.sqrt(12)  # sigma_rel of the plain mean of all steps, gamma = 0


@declared("callbacks.ema")
class EMA(pl.Callback):
    """Average the parameters after each step, for several lengths of the average at once.

    average <- beta_n average + (1 - beta_n) parameters after step n, with the beta_n of each length
    (see ``power_exponent``). Parameters are averaged, buffers are not. Validation uses the average
    of the first length. A checkpoint holds the raw weights in its ``state_dict``, and all averages
    and their counter in this callback's state.

    Args:
        sigma_rel: length of the reported average as a share of the run so far (EDM2's power
            function).
        half_life: half-life in steps of a plain exponential average, in place of ``sigma_rel``.
        others: lengths (sigma_rel) of further averages.
        snapshots: how many times in a run, evenly spread, the averages are stored. Any other length
            (``weights=sigma_rel_0.07``) can then be reconstructed after the run; this needs two
            values of sigma_rel.
    """

    def __init__(
        self,
        sigma_rel: Annotated[Positive | None, Unit("of the run")] = 0.05,
        half_life: Annotated[Positive | None, Unit("steps")] = None,
        others: Sequence[float] = (),
        snapshots: Whole = 0,
    ):
        if (sigma_rel is None) == (half_life is None):
            raise ValueError(
                f"callbacks.ema.sigma_rel={sigma_rel}, half_life={half_life}: one must be a "
                "number, the other null"
            )
        lengths = [s for s in (sigma_rel, *others) if s is not None]
        self._powers = {f"{POWER}{s:g}": s for s in lengths}
        if snapshots > 0 and len(self._powers) < 2:
            raise ValueError(
                f"callbacks.ema.snapshots={snapshots}: needs at least two lengths in sigma_rel "
                "and others; add one, or set 0"
            )
        self.snapshots = snapshots
        self._beta: dict[str, Callable[[int], float]] = {}
        if half_life is not None:
            self._beta[f"half_life_{half_life:g}"] = partial(half_life_beta, half_life)
        self._beta |= {
            name: partial(power_beta, power_exponent(s)) for name, s in self._powers.items()
        }
        self.lengths = tuple(self._beta)
        self.name = self.lengths[0]
        self.validates = True  # validation uses the average in place of the raw weights
        self.updates = 0
        self.averages: dict[str, dict[str, Tensor]] = {}
        self._raw: list[Tensor] | None = None
        self._last_step = 0

    @property
    def average(self) -> dict[str, Tensor]:
        """The reported average of each parameter, {name: tensor}."""
        return self.averages.get(self.name, {})

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        names = _parameters(module)
        for length in self._beta:  # start from a checkpoint's averages, if there are any
            known = self.averages.get(length, names)
            self.averages[length] = {n: known[n].detach().clone().to(p) for n, p in names.items()}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Read the step here, as on_fit_start comes before Lightning restores it.
        self._last_step = trainer.global_step
        # Listing the module's parameters takes as long as averaging them, so do it once.
        weights = _parameters(module)
        self._weights = list(weights.values())
        # Pair them by name, as another callback may have changed the order of the modules.
        self._lists = {
            length: [self.averages[length][name] for name in weights] for length in self._beta
        }

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        # Gradients were accumulated, but no optimizer step was taken.
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        self.updates += 1
        with torch.no_grad():
            for length, beta in self._beta.items():
                torch._foreach_lerp_(self._lists[length], self._weights, 1 - beta(self.updates))
        times = (
            round(k * trainer.max_steps / self.snapshots) for k in range(1, self.snapshots + 1)
        )
        if self.updates in times and trainer.is_global_zero:
            averages = {name: self.averages[name] for name in self._powers}
            stored = {"step": self.updates, "sigma_rel": dict(self._powers), "averages": averages}
            file = Path(trainer.default_root_dir) / SNAPSHOTS / f"{self.updates:09d}.pt"
            trainer.strategy.checkpoint_io.save_checkpoint(stored, file)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.average and self.validates:
            parameters = _parameters(module)
            self._raw = [p.detach().clone() for p in parameters.values()]
            _copy_values(parameters, [self.average[name] for name in parameters])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._raw is not None:
            _copy_values(_parameters(pl_module), self._raw)
            self._raw = None

    def on_exception(
        self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.on_validation_end(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        others = {name: average for name, average in self.averages.items() if name != self.name}
        return {
            "average": self.average,
            "name": self.name,
            "others": others,
            "updates": self.updates,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averages = {state_dict["name"]: dict(state_dict["average"])} | dict(
            state_dict["others"]
        )
        self.updates = int(state_dict["updates"])


def _parameters(module: pl.LightningModule) -> dict[str, Tensor]:
    """Return {name: parameter} of the trainable parameters."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _copy_values(parameters: dict[str, Tensor], values: list[Tensor]) -> None:
    """Copy ``values`` into the parameters, in place and in the same order."""
    torch._foreach_copy_(list(parameters.values()), values)


def power_exponent(sigma_rel: float) -> float:
    """Solve sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2) for gamma >= 0.

    The solution is found by bisection. ValueError if ``sigma_rel`` is outside (0, 12^(-1/2));
    beyond, early steps would have the largest weights.
    """
    if not 0 < sigma_rel < LONGEST:
        raise ValueError(
            f"callbacks.ema.sigma_rel={sigma_rel}: must be above 0 and below {LONGEST:.4f}, the "
            "mean of all steps"
        )
    low, high = 0.0, 1 / sigma_rel  # (gamma + 1) / (gamma + 3) < 1, so gamma + 2 < 1 / sigma_rel
    middle = 0.5 * high
    while low < middle < high:
        longer = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > sigma_rel**2
        if longer:
            low = middle
        else:
            high = middle
        middle = 0.5 * (low + high)
    return low


def power_beta(gamma: float, n: int) -> float:
    """Return beta_n of a power function at step n = 1, 2, ...: (1 - 1/n)^(gamma + 1)."""
    return (1 - 1 / n) ** (gamma + 1)


def half_life_beta(half_life: float, n: int) -> float:
    """Return beta_n of the exponential average with the given half-life in steps.

    At step n the parameters of step i = 1 ... n have weights proportional to 2^(-(n - i) /
    half_life); the initial parameters (step 0) have no weight.
    """
    keep = 2 ** (-1 / half_life)
    return 1 - (1 - keep) / (1 - keep**n)


def combination_factors(
    stored_averages: Sequence[tuple[int, float]], step: int, sigma_rel: float
) -> np.ndarray:
    """Solve for the factors whose combination of stored averages has another length (sigma_rel).

    They minimise the squared distance between the profile of the combination and the wanted one,
    among factors with the sum 1, so parameters that training does not change stay unchanged (app.
    C, alg. 3). ``stored_averages``: (step, sigma_rel) of each average, in the order of the factors.
    ``step`` and ``sigma_rel`` are those of the wanted average.
    """
    profiles = [(t, power_exponent(s)) for t, s in stored_averages]
    gram = np.array([[_profile_product(a, b) for b in profiles] for a in profiles])
    target = np.array([_profile_product(a, (step, power_exponent(sigma_rel))) for a in profiles])
    # Normalise the profiles, as those of early steps are high and narrow.
    scale = 1 / np.sqrt(np.diag(gram))
    count = len(profiles)
    # Minimise on the plane sum = 1, with a Lagrange multiplier.
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = gram * scale[:, None] * scale
    system[count, :count] = system[:count, count] = scale
    factors = np.linalg.lstsq(system, np.append(target * scale, 1.0), rcond=None)[0][:count] * scale
    return factors / factors.sum()


def _profile_product(a: tuple[int, float], b: tuple[int, float]) -> float:
    """Return the integral of the product of two power profiles, each given by (step, gamma)."""
    (s, c), (t, d) = a, b
    overlap = (c + d + 1) * math.log(min(s, t)) - (c + 1) * math.log(s) - (d + 1) * math.log(t)
    return (c + 1) * (d + 1) / (c + d + 1) * math.exp(overlap)
