"""A callback: how far the weights have moved since the start."""

import pytorch_lightning as pl
import torch


class Drift(pl.Callback):
    """Logs the Euclidean distance of all weights from those at the start of this process's fit."""

    def on_train_start(self, trainer, module) -> None:
        self.began = [p.detach().clone() for p in module.parameters()]

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:
            moved = [(p - q).norm() for p, q in zip(module.parameters(), self.began, strict=True)]
            module.log("train/drift", torch.stack(moved).norm())
