"""The Markovian hierarchical VAE (tutorial, "Hierarchical Variational Autoencoders")."""

from typing import Any

from triptych.models.latent import LatentModel
from triptych.networks.ladder import Ladder


class HierarchicalVAE(LatentModel):
    """Two levels or more, each encoded from the one below, decoded from the one above; see ``LatentModel``.

    Raises:
        ValueError: a network of one level.
    """

    def __init__(self, network: Ladder, optimizer, lr_schedule, **more: Any):
        if len(network.encoders) < 2:
            raise ValueError(
                f"model=hierarchical_vae has two levels or more, this network {len(network.encoders)}: "
                "vae is accepted"
            )
        super().__init__(network, optimizer, lr_schedule, **more)
