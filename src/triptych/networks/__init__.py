"""Networks: ``(z (B, *event), gamma (B,), condition | None) -> raw``.

``raw`` is (B, *event) for ``outputs=1`` and (B, outputs, *event) otherwise. Besides its own sizes,
each network takes ``shape`` (the event), ``outputs`` (numbers per dimension), ``conditions`` (name
-> the kind of that part of the condition, see ``diffusion.condition``; empty: unconditional; it
stays readable as an attribute) and ``spacing`` (between the data's levels, None without levels).

If the condition is None, or if a part of it is absent, a network predicts without it.

A network may have several members that train on different items. Its attribute ``training_shares``
is their number; in training, the condition's part ``MEMBER`` (B,), on the CPU, says which member
trains on an item.

``adapter.Adapter`` makes a network of models that are called ``model(x, t, class_labels=...)``.
"""
