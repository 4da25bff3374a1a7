"""Optimise some convolutions with Muon (orthogonal momentum, Jordan et al. 2024).

All other weights are optimised with AdamW.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from triptych.declare import NonNegative, Positive, Share


class Muon(torch.optim.AdamW):
    """Muon for convolutions with as many inputs as outputs, and AdamW for all other weights.

    These convolutions hold most weights of a residual network.

    Args:
        params, adamw: see AdamW.
        kernels_lr, momentum, kernels_decay: learning rate, momentum and weight decay of those
            convolutions. A learning-rate schedule scales ``kernels_lr`` and ``lr`` alike.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        kernels_lr: Positive = 0.02,
        momentum: Share = 0.95,
        kernels_decay: NonNegative = 0.1,
        **adamw: Any,
    ):
        options = {"lr": kernels_lr, "weight_decay": kernels_decay, "momentum": momentum}
        groups = []
        for group in params:
            kernels = [p for p in group["params"] if _is_kernel(p)]
            others = [p for p in group["params"] if not _is_kernel(p)]
            groups += [group | {"params": others}, group | options | {"params": kernels}]
        super().__init__([group for group in groups if group["params"]], **adamw)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            # Call it before groups are removed, as it zeroes all gradients.
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if "momentum" not in group]
        super().step()
        self.param_groups = groups
        for group in groups:
            if "momentum" in group:
                self._update_kernels(group)
        return loss

    def _update_kernels(self, group: dict[str, Any]) -> None:
        """Make one step of Muon for the kernels of a parameter group."""
        kernels: dict[torch.Size, list[Tensor]] = {}
        directions: dict[torch.Size, list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:  # AdamW expects "step" in every state
                state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p)}
            state["mean"].lerp_(p.grad, 1 - group["momentum"])
            direction = p.grad.lerp(state["mean"], group["momentum"])
            kernels.setdefault(p.shape, []).append(p)
            directions.setdefault(p.shape, []).append(direction)
        for shape, same_shape in kernels.items():  # orthogonalize each shape in one batch
            x = torch.stack(directions[shape]).flatten(2)
            x /= torch.linalg.matrix_norm(x, keepdim=True) + 1e-7
            for _ in range(5):  # Newton-Schulz steps bring all singular values near 1
                square = x @ x.mT
                x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
            for p, step in zip(same_shape, x, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(
                    step.view_as(p), alpha=group["lr"]
                )


def _is_kernel(parameter: Tensor) -> bool:
    """Return whether a parameter is the kernel of a convolution that Muon optimises."""
    return parameter.ndim == 4 and parameter.shape[0] == parameter.shape[1]
