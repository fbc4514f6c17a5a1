"""Evaluation of codecs and tokens: metrics, comparisons and their reports."""
