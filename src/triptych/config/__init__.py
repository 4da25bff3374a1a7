"""Configurations: declare, compose, check and build them."""
