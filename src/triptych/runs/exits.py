"""What every command shares: errors as one line on stderr, an exit code that says of what kind, no more."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from triptych.errors import Interrupted, StorageError, UserError
from triptych.runs.directory import STORAGE
from triptych.runs.processes import exit_code, rank


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Tell a user's mistake in one line; anything else is ours and keeps its traceback."""
    # Hydra would print and exit itself; with this it raises, and the telling is ours
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except UserError as error:
        if rank() == 0:
            _tell(str(error))
        sys.exit(exit_code(error))
    except Interrupted as asked:
        if rank() == 0:
            print(asked, file=sys.stderr)
        sys.exit(128 + asked.signal)
    except (HydraException, OmegaConfBaseException) as error:
        from triptych.config.check import explain

        sys.exit(_tell(explain(error, sys.argv[1:])))
    except (ValueError, ConnectionError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").split(".")[0] not in ("hydra", "ray"):
            raise
        sys.exit(_tell(str(error)))  # Hydra's grammar refuses so too, and Ray where no cluster is
    except OSError as error:
        if error.errno not in STORAGE or not _by_hydra(error):
            raise
        refused = StorageError(f"{error.filename}: cannot be written ({error.strerror})")
        _tell(str(refused))
        sys.exit(exit_code(refused))
    except KeyboardInterrupt:
        print("interrupted; type the same command to go on", file=sys.stderr)
        sys.exit(130)


def _by_hydra(error: OSError) -> bool:
    """Whether it was Hydra that touched the file: it makes directories, and writes what its options say."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [name.split(".")[0] for name in frames]
    return [name for name in packages if name in ("hydra", "triptych")][-1:] == ["hydra"]


def _tell(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 1
