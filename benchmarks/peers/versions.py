"""Versions of the packages that are measured, as one row."""

import importlib.metadata
import json
import os
import platform

import soundfile
import torch

PACKAGES = (
    "torch", "transformers", "descript-audio-codec", "descript-audiotools", "vocos", "librosa", "numpy", "scipy",
    "soundfile", "julius", "numba",
)  # fmt: skip


def versions() -> None:
    """Prints the row."""
    row = {"name": "versions", "python": platform.python_version(), "cpus": len(os.sched_getaffinity(0))}
    row["threads"] = torch.get_num_threads()
    for package in PACKAGES:
        try:
            row[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            row[package] = None
    row["libsndfile"] = soundfile.__libsndfile_version__
    row["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    row["mkl"] = torch.backends.mkl.is_available()
    row["onednn"] = torch.backends.mkldnn.is_available()
    print(json.dumps(row), flush=True)


MEASUREMENTS = {"versions": versions}
