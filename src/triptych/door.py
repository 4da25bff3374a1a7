"""What every door shares: errors as one line on stderr, exit code 1, nothing else printed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from triptych.errors import UserError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Tell a user's mistake in one line; anything else is ours and keeps its traceback."""
    # Hydra would print and exit itself; with this it raises, and the telling is ours
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except UserError as error:
        sys.exit(_tell(str(error)))
    except (HydraException, OmegaConfBaseException) as error:
        from triptych.config.check import explain

        sys.exit(_tell(explain(error, sys.argv[1:])))
    except KeyboardInterrupt:
        print("interrupted; type the same command to go on", file=sys.stderr)
        sys.exit(130)


def _tell(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 1
