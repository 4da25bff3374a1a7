"""Data: fixed splits, in memory or memory-mapped; the order of batches follows from the step."""
