"""A package of your own beside the clone: one file per class, and configurations that use them."""
