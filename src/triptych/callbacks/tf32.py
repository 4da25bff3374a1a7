"""Allow TF32, which rounds float32 to a mantissa of ten bits, in training steps only."""

from typing import Any

import pytorch_lightning as pl
import torch


def allow_tf32(allowed: bool) -> None:
    """Set whether a GPU may round the factors of convolutions and matrix products to TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


class TF32(pl.Callback):
    """Allow TF32 in each training step; everywhere else ``set_up_torch`` has forbidden it.

    This callback comes before all others, so that they compute in full float32 after a step.
    """

    def on_train_batch_start(self, *_: Any) -> None:
        allow_tf32(True)

    def on_train_batch_end(self, *_: Any) -> None:
        allow_tf32(False)

    def on_exception(self, *_: Any) -> None:
        allow_tf32(False)
