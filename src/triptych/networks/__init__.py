"""Networks: ``(z (B, *event), gamma (B,), condition (B,) | None) -> raw``. They know nothing of diffusion.

``raw`` is (B, *event) for ``outputs=1`` and (B, outputs, *event) otherwise. Each takes, beside its own sizes,
``shape`` (the event), ``outputs`` (numbers per dimension), ``num_classes`` (0: unconditional;
``condition=None`` or the index ``num_classes`` means "no label"; the number stays readable as an attribute)
and ``spacing`` (between the data's levels,
None without levels).
"""
