"""The commands. They import torch only when a run starts.

Signals and standard streams are set up before other imports.
"""

import os

from triptych.cli import startup

if startup.is_command():
    startup.start()
elif startup.STARTED in os.environ:  # a process that Lightning or a launcher started
    startup.escape_standard_streams()
