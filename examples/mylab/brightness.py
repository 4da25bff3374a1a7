"""A metric of samples: the difference between their brightness and that of the data."""

from triptych.declare import declared
from triptych.models.metric import OfSamples, Samples


@declared("metrics.brightness")
class Brightness(OfSamples):
    """Absolute difference of the mean of samples and of true items, in grey levels of 255."""

    title, unit, higher_is_better = "error of brightness", "grey levels", False

    def figure(self, samples: Samples) -> float:
        return 127.5 * (samples.x.mean() - samples.true.mean()).abs().item()
