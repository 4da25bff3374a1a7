"""Share what the tiny runs of a session have in common, which takes most of their time."""

import dataclasses
import functools
import hashlib
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins

from triptych.config.source import CONFIGS

FOLDER = "TRIPTYCH_TEST_REFERENCES"  # in the environment, so that processes share it
FITTED: dict[str, Any] = {}
RUNS: dict[tuple[str, ...], Path] = {}  # by their overrides
ENTROPIES: dict[bytes, Any] = {}
DEFAULTS: dict[tuple[Any, ...], Any] = {}  # Hydra's lists, by the groups chosen
MERGED: dict[int, bytes] = {}  # the configuration of such a list, by its identity
FILES: dict[tuple[str, str], bytes] = {}  # pickled: ten times as quick as a deep copy
CLONE: dict[tuple[Any, ...], Any] = {}  # what a run records of its code
Plugins.instance()  # imports the class below anew
FileConfigSource = SourcesRegistry.instance().resolve("file")
load_file, make_defaults = FileConfigSource.load_config, defaults_list.create_defaults_list
make_choices = defaults_list._create_interpolation_map
merge_defaults = ConfigLoaderImpl._compose_config_from_defaults_list


def fitted(make: Any, x: Any, process: Any, *rest: Any) -> Any:
    """Fit a report's control to the items ``x``, or reuse one of this process or another."""
    parts = (x.shape, x.dtype, type(process), vars(process), rest)
    key = hashlib.sha256(x.numpy().tobytes() + repr(parts).encode()).hexdigest()
    place = Path(os.environ[FOLDER]) / key
    if key in FITTED:
        return FITTED[key]
    if place.exists():
        found = pickle.loads(place.read_bytes())
    else:
        found = coarse(make)(x, process, *rest)
        half = place.with_name(f"{key}.{os.getpid()}")
        half.write_bytes(pickle.dumps(found))
        half.replace(place)
    found.errors = functools.partial(errors, coarse(found.errors), {})
    return FITTED.setdefault(key, found)


def coarse(call: Any) -> Any:
    """Return ``call`` with a run's reference tabulated at a sixth of the gammas."""

    def patched(*arguments: Any) -> Any:
        with mock.patch("triptych.diffusion.reference.GRID", 8):
            return call(*arguments)

    return patched


def errors(compute: Any, known: dict[bytes, Any], x: Any, gamma: Any, eps: Any) -> Any:
    """Return a fitted control's figures of a report's draws, which all sets of weights share."""
    parts = (part.cpu().numpy().tobytes() for part in (x, gamma, eps))
    key = hashlib.sha256(b"".join(parts)).digest()
    if key not in known:
        if len(known) == 500:  # some megabytes
            known.clear()
        known[key] = compute(x, gamma, eps)
    return known[key]


@functools.lru_cache(maxsize=32)
def composed(overrides: tuple[str, ...]) -> Any:
    """Return the configuration of ``triptych-train`` with these overrides and Hydra's own node."""
    from hydra import compose

    return compose("train", overrides=list(overrides), return_hydra_config=True)


def entropy(mixture: Any) -> Any:
    """Return the entropy of a mixture by its content, because each run has a copy of its own."""
    key = pickle.dumps(mixture)
    return ENTROPIES[key] if key in ENTROPIES else ENTROPIES.setdefault(key, mixture.entropy())


def of_clone(path: str) -> bool:
    """Return whether a folder of configurations is the clone's, so that its files do not change."""
    return Path(path).is_relative_to(CONFIGS.parent)


def loaded(self: Any, config_path: str) -> Any:
    """Return a file of a folder of configurations as Hydra reads it."""
    if not of_clone(self.path):
        return load_file(self, config_path)
    if (self.path, config_path) not in FILES:
        FILES[self.path, config_path] = pickle.dumps(load_file(self, config_path))
    return pickle.loads(FILES[self.path, config_path])


def defaults(repo: Any, config_name: str, overrides_list: Any, **options: Any) -> Any:
    """Return Hydra's list of files to merge, which depends on chosen groups, not on values."""
    values = defaults_list.Overrides(repo, overrides_list).config_overrides
    groups = [o.input_line for o in overrides_list if not any(o is value for value in values)]
    files = [source.path for source in repo.get_sources() if source.scheme() == "file"]
    key = (config_name, *options.values(), *files, *groups)
    if not all(map(of_clone, files)):
        return make_defaults(repo, config_name, overrides_list, **options)
    if key not in DEFAULTS:
        DEFAULTS[key] = make_defaults(repo, config_name, overrides_list, **options)
    return dataclasses.replace(DEFAULTS[key], config_overrides=values)


def choices(overrides: Any, listed: Any, self_added: bool) -> Any:
    """Return what the interpolations of a file's list refer to; Hydra makes it for every file."""
    if any(default.is_interpolation() for default in listed):
        return make_choices(overrides, listed, self_added)
    return None


def merged(self: Any, defaults: Any, repo: Any) -> Any:
    """Return a copy of such a list's merged files, in which values can be set."""
    if not any(known.defaults is defaults for known in DEFAULTS.values()):
        return merge_defaults(self, defaults, repo)
    if id(defaults) not in MERGED:
        MERGED[id(defaults)] = pickle.dumps(merge_defaults(self, defaults, repo))
    return pickle.loads(MERGED[id(defaults)])


@functools.cache
def packages() -> list[SimpleNamespace]:
    """Return the installed packages, as a run records them."""
    from importlib.metadata import distributions

    return [
        SimpleNamespace(metadata={"Name": d.metadata["Name"]}, version=d.version)
        for d in distributions()
    ]


@functools.cache
def external_callbacks(group: str) -> list[Any]:
    """Return the callbacks that installed packages add to each trainer."""
    from lightning_fabric.utilities import registry

    return registry._load_external_callbacks(group)


def of_clone_once(call: Any, own: Any, *arguments: Any, **options: Any) -> Any:
    """Return what a run records of this clone; it is looked up once, as it does not change."""
    if not own(*arguments, **options):
        return call(*arguments, **options)
    if (key := (call, *options.items())) not in CLONE:
        CLONE[key] = call(*arguments, **options)
    return CLONE[key]


def share_files(setattr_: Any = setattr) -> None:
    """Make Hydra use these functions in this process."""
    setattr_(FileConfigSource, "load_config", loaded)
    setattr_(config_loader_impl, "create_defaults_list", defaults)
    setattr_(defaults_list, "_create_interpolation_map", choices)
    setattr_(ConfigLoaderImpl, "_compose_config_from_defaults_list", merged)


def share(setattr_: Any = setattr) -> None:
    """Make the runs of this process use these functions."""
    import torch
    from pytorch_lightning.trainer.connectors import callback_connector
    from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultMetric

    from triptych.diffusion import control
    from triptych.diffusion.reference import BaselineErrors
    from triptych.models import denoiser_model
    from triptych.run import evaluate, provenance

    setattr_(denoiser_model, "BaselineErrors", functools.partial(fitted, BaselineErrors))
    setattr_(denoiser_model, "ITEMS", 32)  # a report's control is fitted on an eighth of the draws
    setattr_(control, "REPEATS", 4)
    setattr_(evaluate, "_entropy", entropy)
    setattr_(control, "LOOKS", 2)
    setattr_(
        os, "fsync", lambda file: None
    )  # no test cuts the power: a run waits for the disk 30 times
    share_files(setattr_)
    if (
        not torch.cuda.is_available()
    ):  # Lightning copies a figure that is logged to the device it is on
        setattr_(_ResultMetric, "to", lambda self, *_: self)
    # Lightning looks for the callbacks of installed packages with each trainer.
    setattr_(callback_connector, "_load_external_callbacks", external_callbacks)
    setattr_(provenance, "distributions", packages)
    here = provenance.CLONE
    for name, own in (
        ("git_commit", lambda root: root == here),
        ("git_state", lambda root, *code: root == here),
    ):
        setattr_(provenance, name, functools.partial(of_clone_once, getattr(provenance, name), own))
