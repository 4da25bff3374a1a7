"""A package of one's own beside the clone: one file a class, and the configurations that name them."""
