"""The first line of long work, and the hints about a device that is not used well."""

import types

import jax
import pytest

from bandtok_jax.runtime import startup
from bandtok_jax.training import sharding


def _hints(monkeypatch, backend, *arguments):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    return startup.hints(*arguments)


def test_the_first_line_names_devices_mesh_dtype_jax_and_cache(monkeypatch):
    mesh = sharding.create_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    monkeypatch.setattr(startup.compile_cache, "folder", lambda: "/home/me/.cache/bandtok_jax")
    line = startup.first_line("bfloat16", startup.mesh_axes(mesh))
    assert line.endswith(
        f"on 1 x cpu, mesh data 1 x fsdp 1 x tensor 1, bfloat16, jax {jax.__version__}, "
        "compile cache /home/me/.cache/bandtok_jax"
    )
    monkeypatch.setattr(startup.compile_cache, "folder", lambda: None)
    assert ", one device, float32, " in startup.first_line("float32") and "cache none" in startup.first_line("float32")


def test_a_device_that_is_not_used_well_is_named_with_the_cure(monkeypatch):
    assert _hints(monkeypatch, "gpu", "float32", 12_000_000, 64) == []
    (tiny,) = _hints(monkeypatch, "gpu", "float32", 1_400_000, 8)
    assert "1.4 M parameters" in tiny and "small" in tiny
    (few,) = _hints(monkeypatch, "gpu", "bfloat16", 12_000_000, 2)
    assert "2 examples" in few and "--config.batch_size" in few
    (wide,) = _hints(monkeypatch, "tpu", "float32", 47_000_000, 16)
    assert "--config.dtype=bfloat16" in wide


@pytest.mark.parametrize(
    "backend, platforms, nvidia, plugin, hint",
    [
        ("cpu", None, True, False, "pip install 'bandtok-jax[gpu]'"),
        ("cpu", None, True, True, "driver"),
        ("cpu", None, False, False, ""),
        ("cpu", "cpu", True, False, ""),  # chosen
        ("gpu", None, True, True, ""),
    ],
)
def test_a_gpu_that_jax_does_not_use_is_named(backend, platforms, nvidia, plugin, hint, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(startup.glob, "glob", lambda pattern: ["/dev/nvidia0"] * nvidia)
    monkeypatch.setattr(startup.shutil, "which", lambda name: None)
    monkeypatch.setattr(startup.importlib.util, "find_spec", lambda name: types.SimpleNamespace() if plugin else None)
    message = startup.unused_gpu()
    assert hint in message and bool(message) == bool(hint)
