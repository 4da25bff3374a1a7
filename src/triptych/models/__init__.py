"""LightningModules, each of which trains on a loss and reports a bound.

The mathematics is in ``diffusion``.
"""
