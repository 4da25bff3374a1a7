"""A Hydra plugin: grid sweeps in rounds."""
