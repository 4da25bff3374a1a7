"""Each file in configs/data makes the datamodule that it names, and all its keys are read."""

import inspect

import hydra
import pytest
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from triptych.config.check import CONFIGS
from triptych.config.identity import register_resolvers
from triptych.data import source
from triptych.data.base import DataError, DataModule

from .helpers import refused, save_images, write_mnist

FILES = sorted((CONFIGS / "data").glob("*.yaml"))


def config(file, root):
    register_resolvers()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose("train", [f"data={file.stem}", "seed=3", f"paths.data_dir={root}"])
    OmegaConf.set_struct(cfg, False)
    return cfg.data


def known_keys(kind):
    """Return the names of a class's parameters and, through **keys, of its parents'."""
    return {
        name
        for c in kind.__mro__
        if "__init__" in vars(c)
        for name in inspect.signature(c.__init__).parameters
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_data_config_builds_datamodule_without_unused_keys(file, tmp_path, monkeypatch):
    monkeypatch.setitem(source.PLACES, "FashionMNIST", ())
    cfg = config(file, tmp_path)
    keys = {key for key in cfg if not key.startswith("_")}
    assert keys <= known_keys(hydra.utils.get_class(cfg._target_))
    if file.stem == "image_embeddings":
        with pytest.raises(
            InstantiationException, match="encoder.pt cannot be read"
        ):  # of a run, not yet
            hydra.utils.instantiate(cfg)
        return
    if "folder" in file.stem:
        with pytest.raises(
            InstantiationException
        ) as caught:  # Hydra wraps what a constructor raises
            hydra.utils.instantiate(cfg)
        assert isinstance(caught.value.__cause__, DataError)
        save_images(tmp_path, 20)
        for i in range(20):
            (tmp_path / f"{i:02d}.txt").write_text("a picture")
        cfg.root = str(tmp_path)
    data = hydra.utils.instantiate(cfg)
    assert isinstance(data, DataModule) and data.name == file.stem and data.seed == 3
    assert data.shape and data.levels in (None, 16, 17, 256)
    if file.stem == "cifar10":
        refused(data.setup, "data.root", str(tmp_path))
        return
    if "mnist" in file.stem:
        refused(data.setup, "data.root", str(tmp_path))
        write_mnist(tmp_path)
        data = hydra.utils.instantiate(cfg, val_size=5)
    data.setup()
    for name, split in data.splits.items():
        assert len(split) and split.values.shape[1:] == data.shape, name
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (cfg.batch_size, *data.shape)
    assert (batch.condition is None) == (not data.conditions)
    assert (data.mixture is not None) == (file.stem in ("mixture", "ring", "embedded_ring"))
