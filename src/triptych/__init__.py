"""Triptych: controlled ablations of diffusion models. One model, three objectives, one bound."""

__version__ = "0.1.0"
