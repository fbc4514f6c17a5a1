"""Distances, token statistics, pictures and reports."""
