"""Fréchet distances by embeddings of networks that are not part of this project, such as CLAP, VGGish or MERT.

They come from a file, from a Python function, or from a command, which may run in another environment.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import hashlib
import importlib
import os
import re
import tempfile

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.evaluation.metrics import external_command, frechet
from bandtok_jax.runtime import atomic_file, untrusted

REFERENCE = "original"  # names the references where systems have their names
FUNCTION = re.compile(r"[\w.]+:\w+")


def frechet_by(name: str, source: str, paths: Mapping[str, Sequence[str]], output: str) -> dict[str, float]:
    """Returns the Fréchet distance of each system to the references, by one kind of embedding.

    Args:
      name: name of the embedding, for messages.
      source: one of three. An .npz file with an array `[N, E]` for "original" and for each system. A function as
        `MODULE:FUNCTION`, which is called with `(audio float32 [S], sample_rate_hz)` of each segment and returns
        `[N, E]`. A command with {folder}, which holds audio files, and {output}, the .npy file `[N, E]` to write.
      paths: audio files of REFERENCE and of each system.
      output: the report's folder. Embeddings are stored there and are not computed again.

    Raises:
      ValueError: the source gives no embeddings, or embeddings of the wrong shape.
    """
    flag = f"--embedding={name}"
    if source.endswith(".npz"):
        embeddings = _arrays(flag, source, [system for system in paths if system != REFERENCE])
    else:
        embeddings = {system: _stored(flag, source, system, files, output) for system, files in paths.items()}
    return _distances(flag, embeddings)


def check(name: str, source: str, systems: Sequence[str]) -> None:
    """Refuses a source that cannot give embeddings of these systems, before anything is measured.

    Raises:
      ValueError, FileNotFoundError: as `frechet_by`, where no audio is needed to find out.
    """
    flag = f"--embedding={name}"
    if source.endswith(".npz"):
        _distances(flag, _arrays(flag, source, systems))
    elif FUNCTION.fullmatch(source):
        _function(flag, source)
    elif not ("{folder}" in source and "{output}" in source):
        raise ValueError(
            f"{flag}={source}: give an .npz file, MODULE:FUNCTION, or a command with {{folder}} and {{output}}"
        )
    else:
        external_command.parse(source, ("folder", "output"), flag)


def _distances(flag: str, embeddings: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the distance of each system to the references."""
    references = embeddings[REFERENCE]
    try:
        return {
            system: frechet.frechet_distance(references, vectors)
            for system, vectors in embeddings.items()
            if system != REFERENCE
        }
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def _arrays(flag: str, source: str, systems: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of the references and of each system from an .npz file."""
    names = (REFERENCE, *systems)
    with untrusted.reading(source, f"write it with numpy.savez, or copy it again, for {flag}"):
        untrusted.require_unpacked(source)
        with np.load(source, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file.files}
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{flag}: {source} holds no array {missing[0]!r}: save one for {REFERENCE} and each codec")
    return arrays


def _stored(flag: str, source: str, system: str, paths: Sequence[str], output: str) -> np.ndarray:
    """Returns the embeddings of one system's audio, from an earlier run where source and audio are the same."""
    digest = hashlib.sha256(f"{source} {system}".encode())
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    path = os.path.join(output, "embeddings", f"{digest.hexdigest()[:32]}.npy")
    if not os.path.exists(path):
        compute = _by_function if FUNCTION.fullmatch(source) else _by_command
        os.makedirs(os.path.dirname(path), exist_ok=True)
        vectors = compute(flag, source, system, paths)
        with atomic_file.atomic_write(path) as partial, open(partial, "wb") as file:
            np.save(file, vectors)
    return np.load(path)


def _function(flag: str, source: str) -> Callable[[np.ndarray, int], np.ndarray]:
    module, _, function = source.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{flag}={source}: {error}; the module must be on PYTHONPATH") from error
    except Exception as error:  # a user's module may raise anything
        raise ValueError(f"{flag}={source}: importing it failed: {type(error).__name__}: {error}") from error


def _by_function(flag: str, source: str, system: str, paths: Sequence[str]) -> np.ndarray:
    embed, embeddings = _function(flag, source), []
    for path in paths:
        audio, sample_rate_hz = waveform.read(path)
        try:
            embeddings.append(np.atleast_2d(embed(waveform.mono(audio), sample_rate_hz)))
        except Exception as error:  # a user's function may raise anything
            raise ValueError(f"{flag}={source} failed on {path}: {type(error).__name__}: {error}") from error
    try:
        return np.concatenate(embeddings)
    except ValueError as error:
        raise ValueError(f"{flag}={source}: embeddings of {system} of several shapes ({error}); give [N, E]") from error


def _by_command(flag: str, source: str, system: str, paths: Sequence[str]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(paths):
            os.symlink(os.path.abspath(path), os.path.join(folder, f"{number:06d}.flac"))
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            external_command.run(source, {"folder": folder, "output": file.name}, flag, f"the audio of {system}")
            try:
                return np.array(np.load(file.name, mmap_mode="r", allow_pickle=False))
            except (ValueError, EOFError, OverflowError) as error:
                raise ValueError(f"{flag}: the command wrote no .npy file to {{output}} ({error})") from error
