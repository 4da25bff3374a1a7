"""What every model here is made with, beside its own parts."""

from triptych.models.lr_schedule import Constant

OPTIONS = {"optimizer": None, "lr_schedule": Constant(), "seed": 0, "repeats": 1, "val_repeats": 1}
