"""An output space: the meaning of the network's output in terms of x0 and epsilon."""

from triptych.declare import Annotated, Ge, Lt, declared
from triptych.diffusion.denoiser import Output
from triptych.diffusion.prediction import Row, Space


@declared("objective.output")
class Blend(Output):
    """value = (1 - share) epsilon - share x0: epsilon at share 0, half the flow's velocity at 1/2.

    Its determinant alpha (1 - share) + sigma share is zero nowhere, so each guess is one in every
    space.
    """

    def __init__(self, share: Annotated[float, Ge(0), Lt(1)] = 0.25):
        super().__init__(Space(f"blend_{share:g}", lambda alpha, sigma: Row(-share, 1.0 - share)))
