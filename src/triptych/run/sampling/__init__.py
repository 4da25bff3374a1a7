"""Models opened again: samples, guidance, pictures, measures."""
