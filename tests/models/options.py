"""Arguments that every model here needs beside its own."""

from triptych.models.lr_schedule import Constant

OPTIONS = {"optimizer": None, "lr_schedule": Constant(), "seed": 0, "repeats": 1, "val_repeats": 1}
