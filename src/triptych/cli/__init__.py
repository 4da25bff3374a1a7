"""The commands, which do not import torch until a run starts.

Signals and streams are set up before other imports.
"""

import os

from triptych.cli import startup

if startup.is_command():
    startup.start()
elif startup.STARTED in os.environ:  # a process that Lightning or a launcher started
    startup.escape_standard_streams()
