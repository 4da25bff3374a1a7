r"""The mathematics of diffusion models, as functions of tensors.

This package imports neither Lightning nor Hydra and, of this project, only ``declare`` and
``errors``.

One coordinate is used throughout: **gamma = -log SNR = log(sigma^2 / alpha^2)**. It grows from data
(t = 0) to noise (t = 1). A noisy latent is ``z = alpha x + sigma eps``; variance preserving means
``alpha^2 = sigmoid(-gamma)`` and ``sigma^2 = sigmoid(gamma)``. Luo 2022 (the tutorial
"Understanding Diffusion Models") writes ``sqrt(alphabar_t)`` for our ``alpha``; its per-step
``alpha_t`` is never stored.

After the schedule, everything is a function of ``(z, gamma)``. Losses and bounds are nats summed
over dimensions, shape ``(B,)``; bits per dimension appear only in reports.
"""
