"""Make Hydra's compositions quick: most of each is what was read before, and maps that nobody reads."""

import copy
from typing import Any

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.hydra import Hydra

FILES: dict[tuple[str, ...], Any] = {}  # by the folders that are searched and the file's name
MAP = defaults_list._create_interpolation_map


class SharedFiles(CachingConfigRepository):
    """Hydra's repository of a composition, with the files that earlier ones of this process have read."""

    def load_config(self, config_path: str) -> Any:
        """Return a file's content; a composition makes it part of its own, so it gets a copy."""
        if config_path not in self.cache:
            key = (*(source.path for source in self.get_sources()), config_path)
            if key not in FILES:
                FILES[key] = self.delegate.load_config(config_path)
            self.cache[config_path] = copy.deepcopy(FILES[key])
        return self.cache[config_path]


def _map(overrides: Any, defaults: Any, self_added: bool) -> Any:
    """Return the choices that a list of defaults can refer to, None for one without references."""
    return MAP(overrides, defaults, self_added) if any(one.is_interpolation() for one in defaults) else None


def share_files() -> None:
    """Have Hydra share what it read, and take ``-m`` for what it composes once more for ``hydra.mode``."""
    # Hydra has no hooks for them
    config_loader_impl.CachingConfigRepository = SharedFiles  # type: ignore[misc]
    defaults_list._create_interpolation_map = _map  # type: ignore[assignment]
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
