"""A sweeper for searches, which Hydra finds in this package."""
