"""Data: whole sets in memory, fixed splits, and an order that is a function of the step."""
