"""Studies of many runs: sweeps, comparisons, claims, reports."""
