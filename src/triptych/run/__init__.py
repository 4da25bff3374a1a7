"""Runs: prepare, execute, record and read a run directory."""
