"""Weights and codes in the formats of other programs."""
