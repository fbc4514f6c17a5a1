"""The folder that keeps compiled programs, so that the second start of a verb does not compile again.

JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false switches it off. jax keeps programs
whose compilation took a second or longer, under a name that holds the program, its versions and the processor.
"""

import contextlib
import os
import sys

_FOLDER = os.path.join("bandtok_jax", "compiled")
LARGEST_BYTES = 4 * 2**30  # our choice: some hundred training steps
COMPILING = "bandtok-compile"  # name of the threads that compile beside other work


def enable() -> str | None:
    """Lets jax keep compiled programs in a folder of the user, unless the user chose another folder or none.

    Before jax is imported this costs nothing; it never fails, also where nothing can be written.

    Returns:
      The folder; None where no programs are kept.
    """
    jax, path = sys.modules.get("jax"), _chosen()
    if path is None and (path := _default_folder()):
        if jax:
            jax.config.update("jax_compilation_cache_dir", path)
        else:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = path
        _prune(path)
    return path or None


def folder() -> str | None:
    """Returns the folder in which jax keeps compiled programs, if it keeps any."""
    return _chosen() or None


def _chosen() -> str | None:
    """Returns the folder that jax is set to, "" for none, or None where nothing was chosen."""
    jax = sys.modules.get("jax")
    if jax:
        return jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else ""
    off = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "f", "n", "no", "off")
    return "" if off else os.environ.get("JAX_COMPILATION_CACHE_DIR")


def _default_folder() -> str | None:
    """Returns a writable folder of the user by the XDG base directory specification, if there is one."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.expanduser(os.path.join("~", ".cache"))
    path = os.path.join(home, _FOLDER)
    try:
        # For the user alone, because loading a compiled program runs any code that it holds.
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError:
        return None
    return path if os.path.isabs(path) and os.access(path, os.W_OK | os.X_OK) else None


def _prune(path: str) -> None:
    """Deletes the programs that were not used for longest, where all together are larger than LARGEST_BYTES."""
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        files = [(entry, entry.stat()) for entry in entries if entry.is_file()]
        excess = sum(stat.st_size for _, stat in files) - LARGEST_BYTES
        for entry, stat in sorted(files, key=lambda file: max(file[1].st_atime, file[1].st_mtime)):
            if excess <= 0:
                return
            os.remove(entry)
            excess -= stat.st_size
