"""Configurations: names that follow from them, checks before torch is imported, objects built from them."""
