"""What only the tutorial's pages use."""
