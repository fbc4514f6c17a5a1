"""Launchers, which start a training on a machine or a cluster."""
