"""Networks: ``(z (B, *event), gamma (B,), condition | None) -> raw``.

``raw`` is (B, *event) for ``outputs=1`` and (B, outputs, *event) otherwise. Each takes, beside its own sizes,
``shape`` (the event), ``outputs`` (numbers per dimension), ``conditions`` (name -> what that part of the
condition is, see ``diffusion.condition``; empty: unconditional; it stays readable as an attribute) and
``spacing`` (between the data's levels, None without levels).
Without a condition, or with a part of it absent, a network answers for all.
A network may train in several parts, each on its own items: with ``training_shares`` as their number, the
condition's part ``MEMBER`` (B,), on the CPU, says in training which of them an item is for.
``adapter.Adapter`` puts models under this contract that are called ``model(x, t, class_labels=...)``.
"""
