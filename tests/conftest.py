"""Settings of all tests: one CPU device, a cache of compiled programs, flags that Grain's workers read."""

import contextlib
import os
import pathlib
import resource

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Each core has a process of tests. With threads of their own OpenMP's loops wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from absl import flags
import pytest

# Grain's workers ask for a flag of their own (grain 0.2.18).
flags.FLAGS.mark_as_parsed()


MAPS, MOST_MAPS = pathlib.Path("/proc/self/maps"), 50_000  # Linux allows 65,530; a compiled program takes six


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Frees all compiled programs in time: a process that has no memory maps left is killed in the next compilation."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()


@pytest.fixture(params=["a tenth", pytest.param("all", marks=pytest.mark.slow)])
def check(request):
    """Checks a tenth of the cases of `fuzz.check`, or all of them."""
    from tests import fuzz

    def checked(*arguments, cases=200, **options):
        return fuzz.check(*arguments, cases=cases if request.param == "all" else cases // 10, **options)

    return checked


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
