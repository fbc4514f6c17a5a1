"""Settings of all tests: one CPU device, a cache of compiled programs, flags that Grain's workers read."""

import contextlib
import os
import resource

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import flags
import pytest

# Grain's workers ask for a flag of their own (grain 0.2.18).
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def full_disk():
    """A context in which no file may grow beyond the given number of bytes."""

    @contextlib.contextmanager
    def limited(room_bytes):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited


@pytest.fixture
def float64():
    """Runs the test with 64-bit numbers."""
    import jax

    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
