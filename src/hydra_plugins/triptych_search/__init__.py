"""A sweeper of Hydra's for searches; Hydra finds it by its place."""
