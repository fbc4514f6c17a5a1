"""Compiled programs are cached in the folder of the user's choice, and a folder that cannot be written is no error."""

import os
import stat
import subprocess
import sys

import jax
import pytest

from bandtok_jax import cli
from bandtok_jax.runtime import compile_cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Sets the default configuration with an empty cache folder, and returns the folder of compiled programs."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "bandtok_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_folder_of_the_user_alone(home):
    assert compile_cache.folder() is None
    assert compile_cache.enable() == compile_cache.enable() == compile_cache.folder() == str(home)
    assert jax.config.jax_compilation_cache_dir == str(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_every_verb_enables_it(home, capsys):
    assert cli.main(["doctor", "--data", str(home / "missing")]) == 1
    assert compile_cache.folder() == str(home)


@pytest.mark.parametrize("relative", ["cache", ""])
def test_a_relative_folder_is_none(home, tmp_path, monkeypatch, relative):
    monkeypatch.setenv("XDG_CACHE_HOME", relative)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compile_cache.enable() == str(tmp_path / "home" / ".cache" / "bandtok_jax" / "compiled")


def test_the_users_choice_holds(home, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert compile_cache.enable() == str(tmp_path / "mine")
    jax.config.update("jax_compilation_cache_dir", "")
    assert compile_cache.enable() is None
    assert not home.exists()


def test_switched_off(home):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert compile_cache.enable() is None and not home.exists()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.parametrize("place", ["file", "link to nothing"])
def test_a_folder_that_cannot_be_written_is_no_error(home, tmp_path, place):
    if place == "file":
        (tmp_path / "cache").write_text("")
    else:
        (tmp_path / "cache").symlink_to("/proc/no such folder")
    assert compile_cache.enable() is None and compile_cache.folder() is None


def test_the_least_recently_used_program_is_removed(home, monkeypatch):
    monkeypatch.setattr(compile_cache, "LARGEST_BYTES", 250)
    home.mkdir(parents=True)
    for name, used in (("new", 9e8), ("old", 7e8), ("newer", 1e9)):
        (home / name).write_bytes(bytes(100))
        os.utime(home / name, (used, 0))
    compile_cache.enable()
    assert sorted(file.name for file in home.iterdir()) == ["new", "newer"]


def test_a_program_is_found_again_by_another_process(tmp_path):
    program = (
        "import bandtok_jax, logging, numpy, sys\n"
        "from bandtok_jax.runtime import compile_cache\n"
        "assert 'jax' not in sys.modules and compile_cache.enable() and 'jax' not in sys.modules\n"
        "import jax\n"
        "jax.monitoring.register_event_listener(lambda event, **_: print(event))\n"
        "print(compile_cache.folder(), jax.jit(lambda x: x * 2)(numpy.ones(3))[0])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    printed = []
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        printed.append(run.stdout)
    assert all(f"{tmp_path}/bandtok_jax/compiled 2.0" in text for text in printed)
    assert "cache_misses" in printed[0] and "cache_hits" not in printed[0]
    assert "cache_hits" in printed[1] and "cache_misses" not in printed[1]
