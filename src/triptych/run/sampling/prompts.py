"""What prompts ask of a model: a condition for each sample."""

from collections.abc import Sequence
from typing import Any

import torch

from triptych.data.base import DataModule
from triptych.diffusion.condition import Condition
from triptych.errors import UserError

TEXT = "text"


def texts(prompt: Any) -> list[str]:
    """``prompt`` of a command as a list: one text or several."""
    return [prompt] if isinstance(prompt, str) else list(prompt)


def of_prompts(prompts: Sequence[str], data: DataModule, parts: Sequence[str], n: int) -> Condition:
    """The condition of n samples, of the prompts in turn.

    Raises:
        UserError: no prompt, one that the data's encoder refuses, or a model that is told no text.
    """
    if not prompts:
        raise UserError("prompt=[]: must be a text, or a list of one text or more")
    conditions = data.encode_prompts(prompts)
    if TEXT not in parts:
        raise UserError(
            f"prompt={prompts[0]!r}: this model is not conditioned on text; pass one trained with "
            "model.conditional=[text]"
        )
    return conditions[torch.arange(n) % len(prompts)]
