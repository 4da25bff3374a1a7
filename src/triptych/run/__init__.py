"""What a run directory is: made, recorded, locked, read."""
