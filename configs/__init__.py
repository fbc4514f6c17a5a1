"""Experiments as data: one file a system, `get_config(variant)` in each."""
