"""What a run cost beside its time: the memory that it took, and the calls that a sample takes."""

import resource
import sys

import torch

from triptych.run.experiment import Experiment


def measure_cost(device: torch.device, experiment: Experiment) -> dict[str, float]:
    """{"memory": bytes, "evaluations": calls of the denoiser for one sample}, for ``summary.json``.

    Memory is the most that was in use at a time: what torch allocated on the GPU, else what the process held
    (resident set), libraries included; of this process alone, since it started. A model without a denoiser
    has no evaluations.
    """
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = most if sys.platform == "darwin" else 1024 * most  # kilobytes on Linux
    figures = {"memory": float(memory)}
    if experiment.drawing is not None and hasattr(experiment.model, "denoiser"):
        figures["evaluations"] = float(experiment.drawing.sampler.evaluations)
    return figures
