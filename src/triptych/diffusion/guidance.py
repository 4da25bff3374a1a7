r"""Guidance: wrappers that move a denoiser's prediction towards a condition.

The scale s is that of ``base + s (target - base)``: s = 1 is the target itself, s = 0 the base. (Ho
& Salimans' w is s - 1; the w of the other papers is s.) A linear mix of two predictions at the same
(z, gamma) is the same mix in x0, epsilon, score and v.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.declare import Opened, Share, declared

from .condition import Condition
from .prediction import Prediction
from .process import expand_like
from .protocol import AnyDenoiser
from .schedule import Gamma
from .wrappers import Wrapper


def extrapolate(base: Prediction, target: Prediction, scale: Tensor | float) -> Prediction:
    """Return base + scale (target - base), computed in the target's own space."""
    start = base.view(target.own)
    return target.moved(target.own, start + scale * (target.value - start))


@declared("guidance")
class ClassifierFree(Wrapper):
    """Classifier-free guidance with one network (Ho & Salimans 2022; Luo 2022, sec. "Guidance").

    The score is score(z) + s (score(z | y) - score(z)).

    Args:
        denoiser: a conditional denoiser; called without a condition, it predicts unconditionally.
        scale: s; 1 is the conditional denoiser bit for bit, 0 the unconditional one.
        interval: gammas (low, high] within which to guide (Kynkaanniemi et al. 2024); outside of it
            the conditional denoiser is used alone. gamma = 2 ln(sigma / alpha), and sigma / alpha
            is the paper's sigma.
        rescale: share, from 0 to 1, by which the guided prediction is scaled back to the standard
            deviation of the conditional one, sample by sample, in the space of the network's output
            (Lin et al. 2024, sec. 3.4, for v).
        parts: names of the parts of the condition that the base prediction is made without; None:
            all.
    """

    guides_latents = True

    def __init__(
        self,
        denoiser: AnyDenoiser,
        scale: float = 1.0,
        interval: tuple[Gamma, Gamma] | None = None,
        rescale: Share = 0.0,
        parts: Sequence[str] | None = None,
    ):
        super().__init__(denoiser)
        if not denoiser.conditional:
            fix = "the model is not conditional; train one with model.conditional=true"
            raise ValueError(f"guidance.scale={scale}: {fix}")
        for name in parts or ():
            if name not in denoiser.conditions:
                known = ", ".join(denoiser.conditions)
                raise ValueError(f"guidance.parts: the condition has no part {name!r}; use {known}")
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(
                f"guidance.interval={interval}: must be null or two gammas [low, high]"
            )
        self.scale, self.interval, self.rescale, self.parts = float(scale), interval, rescale, parts

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        if condition is None or self.scale == 1:
            return self.denoiser(z, gamma, condition)
        if self.interval is None:
            if self.scale == 0:
                return self.denoiser(z, gamma, self._without(condition))
            return self._guided(z, gamma, condition, self.scale)
        inside = (gamma > self.interval[0]) & (gamma <= self.interval[1])
        if not inside.any():
            return self.denoiser(z, gamma, condition)
        return self._guided(
            z, gamma, condition, expand_like(torch.where(inside, self.scale, 1.0).to(z), z)
        )

    def left_out(self, parts: Sequence[str]) -> Sequence[str]:
        if self.scale == 1:
            return ()
        return [name for name in parts if self.parts is None or name in self.parts]

    def _without(self, condition: Condition) -> Condition | None:
        if self.parts is None:
            return None
        return condition.without(*self.parts)

    def _guided(
        self, z: Tensor, gamma: Tensor, condition: Condition, scale: Tensor | float
    ) -> Prediction:
        target = self.denoiser(z, gamma, condition)
        guess = extrapolate(self.denoiser(z, gamma, self._without(condition)), target, scale)
        if not self.rescale:
            return guess
        target_std = expand_like(target.value.flatten(1).std(1), z)
        guess_std = expand_like(guess.value.flatten(1).std(1), z)
        return guess.moved(
            guess.own, guess.value * (1 + self.rescale * (target_std / guess_std - 1))
        )


class Classifier(Wrapper):
    """Classifier guidance (Dhariwal & Nichol 2021; Luo 2022, sec. "Guidance").

    score(z | y) = score(z) + s grad_z log p(y | z).

    Args:
        classifier: noise-aware, ``(z (B, *event), gamma (B,)) -> logits (B, K)``.
        scale: s; 1 is Bayes' rule, 0 is the denoiser without a condition, bit for bit.
    """

    def __init__(self, denoiser: AnyDenoiser, classifier: Opened, scale: float = 1.0):
        super().__init__(denoiser)
        self.classifier, self.scale, self.conditional = classifier, float(scale), True

    def left_out(self, parts: Sequence[str]) -> Sequence[str]:
        return parts

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        guess = self.denoiser(z, gamma, None)
        if condition is None or self.scale == 0:
            return guess
        return guess.moved("score", guess.score + self.scale * self.gradient(z, gamma, condition))

    def gradient(self, z: Tensor, gamma: Tensor, condition: Condition) -> Tensor:
        """Return grad_z log p(y | z), (B, *event); 0 for an item without a label."""
        label, present = condition.label, condition.parts["label"].present
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            logits = self.classifier(z, gamma.expand(z.shape[0]))
            picked = torch.log_softmax(logits, 1).gather(1, label[:, None])
            if present is not None:
                picked = torch.where(present[:, None], picked, 0.0)
            return torch.autograd.grad(picked.sum(), z)[0]


class Auto(Wrapper):
    """Autoguidance (Karras et al. 2024): move the prediction away from that of a weaker model.

    The result is weak + s (good - weak).

    Args:
        denoiser: the good model; at s = 1 it is used alone, bit for bit.
        weak: a model that is smaller or was trained for a shorter time, on the same task and under
            the same process.
        scale: s, usually above 1.
    """

    def __init__(self, denoiser: AnyDenoiser, weak: Opened, scale: float = 1.0):
        super().__init__(denoiser)
        if str(weak.process) != str(denoiser.process):
            problem = f"its process {weak.process} differs from the model's, {denoiser.process}"
            raise ValueError(f"guidance.weak: {problem}; pass a model with the same process")
        self.weak, self.scale = weak, float(scale)

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        good = self.denoiser(z, gamma, condition)
        if self.scale == 1:
            return good
        return extrapolate(self.weak(z, gamma, condition), good, self.scale)
