"""LightningModules: one training step and one accounting each; the mathematics is in ``diffusion``."""
