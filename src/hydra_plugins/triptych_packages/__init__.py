"""A Hydra plugin: the configurations of trusted packages."""
