"""The commands: thin, and no torch until a run starts."""
