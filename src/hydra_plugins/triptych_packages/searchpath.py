"""Add the ``configs`` of each trusted package to Hydra's search path, behind the clone's own."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class Packages(SearchPathPlugin):
    """Adds the folders wherever Hydra composes from the clone's ``configs``.

    Other programs that use Hydra are left alone.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from triptych.config.source import CONFIGS, check_files_are_unique, package_config_folders

        packages = package_config_folders()
        if not packages or not any(
            str(CONFIGS) in str(part.path) for part in search_path.get_path()
        ):
            return
        check_files_are_unique()
        for package, folder in packages.items():
            search_path.append(package, f"file://{folder}")
