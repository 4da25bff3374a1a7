"""The commands: thin, and no torch until a run starts. Imports take time: a process is prepared first."""

from triptych.cli import startup

if startup.is_command():
    startup.start()
