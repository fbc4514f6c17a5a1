"""Metrics of audio and of tokens."""
