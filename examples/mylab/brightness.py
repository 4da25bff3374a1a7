"""A metric of samples: whether they are as bright as the data."""

from triptych.declare import declared
from triptych.models.metric import OfSamples, Samples


@declared("metrics.brightness")
class Brightness(OfSamples):
    """Mean over samples less mean over true items, without its sign, in grey levels of 255."""

    title, unit, higher_is_better = "error of brightness", "grey levels", False

    def figure(self, samples: Samples) -> float:
        return 127.5 * (samples.x.mean() - samples.true.mean()).abs().item()
