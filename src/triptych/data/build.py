"""Data from a configuration."""

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.data.contract import check_contract


def build_data(config: dict, download: bool = True) -> DataModule:
    """The datamodule, loaded; ``download=False``: from what is there, whatever the configuration asks for.

    Raises:
        UserError: it cannot be built or read, or what it holds breaks the contract of a data set.
    """
    data = build(config["data"], "data")
    changes = config.get("augmentation") or {}
    data.augmentations = [build(node, f"augmentation.{name}") for name, node in changes.items() if node]
    if not download and getattr(data, "download", False):
        data.download = False  # it would write where the configuration says
    data.setup()
    check_contract(data)
    return data
