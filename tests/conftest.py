"""Settings of all tests: one CPU device, a cache of compiled programs, flags that Grain's workers read."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import flags
import pytest

# Grain's workers ask for a flag of their own (grain 0.2.18).
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def float64():
    """Runs the test with 64-bit numbers."""
    import jax

    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
