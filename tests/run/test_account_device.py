"""The account's sums are added over processes on the device of the trainer."""

from types import SimpleNamespace

import torch

from triptych.models.accounting import Account, Accounting
from triptych.run.evaluate import evaluate_split


class Watched(Accounting):
    """Record where the sums are when they are read."""

    def compute(self) -> Account:
        self.read_on = self.sums.device.type
        return Account({}, self.unit)


def test_sums_return_to_the_trainers_device_after_a_test():
    """Lightning moves a model to the CPU at the end of a test, where NCCL cannot add them."""
    accounting = Watched(dims=2, discrete=False)
    trainer = SimpleNamespace(
        test=lambda model, **_: model.accounting.cpu(),
        strategy=SimpleNamespace(root_device=torch.device("meta")),
        callbacks=[],
    )
    split = SimpleNamespace(groups=None)
    data = SimpleNamespace(splits={"val": split}, mixture=None, eval_dataloader=lambda *_: None)
    evaluate_split(trainer, SimpleNamespace(seed=1, accounting=accounting), data, "val")
    assert accounting.read_on == "meta"
