"""Speed of other implementations on the CPU, one file each; `run_peers.py` runs them.

Every file has MEASUREMENTS, name -> function without arguments that prints its rows. Weights are random, and settings
are those of the official packages.
"""
