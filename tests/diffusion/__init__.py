"""Tests of the mathematics: identities and oracles."""
