"""Configurations: names that follow from them, checks before anything is imported, objects built from them."""
