"""``compile=true``: torch.compile of a model's networks, while they are trained and nowhere else.

What is reported is computed by the network as it is written, whether it was compiled or not. Names of weights
stay as they are, so a checkpoint goes on in either state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from triptych.errors import UserError
from triptych.models.base import BoundModel


def check_compiler(config: dict[str, Any], model: BoundModel, device: torch.device) -> None:
    """Compile a line of code where ``compile=true``, as that alone shows that this machine can.

    Raises:
        UserError: it cannot, or the model has no network.
    """
    if not config.get("compile"):
        return
    if not model.networks():
        raise UserError(f"compile=true: {type(model).__name__} has no network; pass false")
    try:
        torch.compile(_probe)(torch.zeros(2, device=device))
    except Exception as error:  # a compiler's own, under many names
        while error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines or [type(error).__name__])[0][:200]
        raise UserError(
            f"compile=true: this machine cannot compile for {device.type} ({reason}); pass false, or "
            "install a C++ compiler, g++ or the one that CXX names"
        ) from error


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x + 1).sin()


@contextmanager
def compiled(model: BoundModel, config: dict[str, Any]) -> Iterator[None]:
    """Within it the model's networks are compiled where ``compile=true``."""
    networks = model.networks() if config.get("compile") else []
    for network in networks:
        network.compile()
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None
