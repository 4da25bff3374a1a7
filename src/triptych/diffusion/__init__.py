r"""The mathematics: tensors in, tensors out. No Lightning, no Hydra; ``declare`` and ``errors`` alone.

One coordinate runs through the whole room: **gamma = -log SNR = log(sigma^2 / alpha^2)**, which grows
from data (t = 0) to noise (t = 1). A noisy latent is ``z = alpha x + sigma eps``; variance preserving
means ``alpha^2 = sigmoid(-gamma)`` and ``sigma^2 = sigmoid(gamma)``. The tutorial (Luo 2022) writes
``sqrt(alphabar_t)`` for our ``alpha``; its per-step ``alpha_t`` is never stored.

Everything downstream of the schedule is a function of ``(z, gamma)``. Losses and bounds are nats
summed over dimensions, shape ``(B,)``; bits per dimension appear only in reports.
"""
