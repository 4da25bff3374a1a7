"""What one process draws on the CPU in a training step."""

import torch

from triptych.diffusion.draws import BATCH_DRAWS, StepShare

CPU = torch.device("cpu")


def training_draw(shape, batch, seed, step, rank=0, world=1):
    return BATCH_DRAWS.training_draw(shape, StepShare(batch, seed, step, rank, world, CPU))


def ensemble_members(members, batch, seed, step, rank=0, world=1):
    return BATCH_DRAWS.ensemble_members(members, StepShare(batch, seed, step, rank, world, CPU))


def training_noise(batch, seed, step, rank=0, world=1):
    return BATCH_DRAWS.training_noise(StepShare(batch, seed, step, rank, world, CPU))
