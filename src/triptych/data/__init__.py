"""Data: fixed splits, in memory or mapped, and an order that is a function of the step."""
