"""Whether two configurations speak of the same data."""

# how data are loaded, from where and how many: not what they are
LOADING = {
    "batch_size", "eval_batch_size", "seed", "num_workers", "pin_memory", "root", "download",
    "val_size", "train_size", "test_size", "data_seed", "val_fraction", "test_fraction",
}  # fmt: skip


def data_identity(data: dict) -> dict:
    """What a ``data`` configuration says of the distribution itself."""
    return {key: value for key, value in data.items() if key not in LOADING}


def describe(data: dict) -> str:
    """A data configuration in a few words: the class's name and what it was told."""
    told = ", ".join(f"{k}={v}" for k, v in data_identity(data).items() if k[0] != "_")
    name = data["_target_"].rpartition(".")[2]
    return f"{name}({told})"[:120]
