"""AdamW, with Muon for kernels: momentum made orthogonal (Jordan et al. 2024)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from triptych.declare import NonNegative, Positive, Share


class Muon(torch.optim.AdamW):
    """AdamW, but Muon for the convolutions from a width to the same width, most of a residual network.

    Args:
        params, adamw: see AdamW.
        kernels_lr, momentum, kernels_decay: of those convolutions; a schedule scales their rate as ``lr``.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        kernels_lr: Positive = 0.02,
        momentum: Share = 0.95,
        kernels_decay: NonNegative = 0.1,
        **adamw: Any,
    ):
        own = {"lr": kernels_lr, "weight_decay": kernels_decay, "momentum": momentum}
        groups = []
        for group in params:
            kernels = [p for p in group["params"] if p.ndim == 4 and p.shape[0] == p.shape[1]]
            others = [p for p in group["params"] if p.ndim != 4 or p.shape[0] != p.shape[1]]
            groups += [group | {"params": others}, group | own | {"params": kernels}]
        super().__init__([group for group in groups if group["params"]], **adamw)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():  # with all groups in place: a closure zeroes their gradients
            loss = None if closure is None else closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if "momentum" not in group]
        super().step()
        self.param_groups = groups
        for group in groups:
            if "momentum" in group:
                self._kernels(group)
        return loss

    def _kernels(self, group: dict[str, Any]) -> None:
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for p in group["params"]:
            if p.grad is not None:
                if not (state := self.state[p]):  # AdamW reads a step in every state
                    state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p)}
                state["mean"].lerp_(p.grad, 1 - group["momentum"])
                alike.setdefault(p.shape, []).append((p, p.grad.lerp(state["mean"], group["momentum"])))
        for pairs in alike.values():
            x = torch.stack([direction for _, direction in pairs]).flatten(2)
            x /= torch.linalg.matrix_norm(x, keepdim=True) + 1e-7
            for _ in range(5):  # Newton and Schulz: all singular values come near 1
                square = x @ x.mT
                x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
            for (p, _), step in zip(pairs, x, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step.view_as(p), alpha=group["lr"])
