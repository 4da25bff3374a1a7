"""The variational autoencoder (Kingma & Welling 2014; tutorial, "Variational Autoencoders")."""

from typing import Any

from triptych.models.latent import LatentModel
from triptych.networks.ladder import Ladder


class VAE(LatentModel):
    """-log p(x) <= E_q[-log p(x | z)] + KL(q(z | x) || N(0, I)): one level; see ``LatentModel``.

    Raises:
        ValueError: a network of several levels.
    """

    def __init__(self, network: Ladder, optimizer, lr_schedule, **more: Any):
        if len(network.encoders) != 1:
            raise ValueError(
                f"model=vae has one level, this network {len(network.encoders)}: hierarchical_vae is accepted"
            )
        super().__init__(network, optimizer, lr_schedule, **more)
