"""Configurations: loaded, checked, stored."""
