"""Samples: of a run or of a model opened again, as pictures, and measured."""
