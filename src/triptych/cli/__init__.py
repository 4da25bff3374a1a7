"""The commands: no torch until a run starts; signals and streams are set up before other imports."""

from triptych.cli import startup

if startup.is_command():
    startup.start()
