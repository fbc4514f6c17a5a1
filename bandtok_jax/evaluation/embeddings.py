"""Frechet distances by embeddings of networks that are not part of this project: CLAP, VGGish, MERT ...

They come from a file, from a Python function, or from a command, which may live in another environment.
"""

from collections.abc import Sequence
import hashlib
import importlib
import os
import re
import tempfile

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.evaluation import commands, frechet
from bandtok_jax.evaluation.evaluate import ORIGINAL, Result, embeddings_path, sound_path

FUNCTION = re.compile(r"[\w.]+:\w+")


def mel_frechet(results: Sequence[Result]) -> tuple[float | None, int]:
    """`FAD-mel` of these pieces of one system, see `frechet.MEL_MEANING`, and of how many embeddings it is.

    It is None for less than two.
    """
    pairs = [np.load(embeddings_path(result.path)) for result in results]
    first, second = (np.concatenate([pair[role] for pair in pairs]) for role in ("original", "decoded"))
    return frechet.frechet_distance(first, second) if len(first) > 1 else None, len(first)


def frechet_by(name: str, source: str, results: dict[str, list[Result]], output: str) -> dict[str, float]:
    """The Frechet distance of each system to the originals, by one kind of embedding.

    Args:
      name: of the embedding, for messages.
      source: an .npz file with one array `[N, E]` for "original" and for each system; MODULE:FUNCTION, called with
        `(audio float32 [S], sample_rate_hz)` of each piece, that returns `[N, E]`; or a command with {folder}, that
        holds sound files, and {output}, the .npy file `[N, E]` to write.
      results: of each system.
      output: the report's folder. What was computed is kept there, and is not computed again.

    Raises:
      ValueError: the source gives no embeddings, or such as do not fit.
    """
    flag = f"--embedding={name}"
    if source.endswith(".npz"):
        with np.load(source) as file:
            missing = [one for one in (ORIGINAL, *results) if one not in file.files]
            if missing:
                raise ValueError(
                    f"{flag}: {source} holds no array {missing[0]!r}: save one for {ORIGINAL} and each codec"
                )
            found = {one: file[one] for one in (ORIGINAL, *results)}
    else:
        if not FUNCTION.fullmatch(source) and not ("{folder}" in source and "{output}" in source):
            raise ValueError(
                f"{flag}={source}: give an .npz file, MODULE:FUNCTION, or a command with {{folder}} and {{output}}"
            )
        groups = {ORIGINAL: next(iter(results.values())), **results}
        found = {one: _kept(flag, source, one, group, output) for one, group in groups.items()}
    try:
        return {system: frechet.frechet_distance(found[ORIGINAL], found[system]) for system in results}
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def _kept(flag: str, source: str, system: str, results: list[Result], output: str) -> np.ndarray:
    """The embeddings of one system's sounds, from an earlier run where source and sounds are the same."""
    sounds = [sound_path(output, system, result.piece) for result in results]
    digest = hashlib.sha256(f"{source} {system}".encode())
    for sound in sounds:
        with open(sound, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    path = os.path.join(output, "embeddings", f"{digest.hexdigest()[:32]}.npy")
    if not os.path.exists(path):
        compute = _by_function if FUNCTION.fullmatch(source) else _by_command
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".partial", "wb") as file:
            np.save(file, compute(flag, source, system, sounds))
        os.replace(path + ".partial", path)
    return np.load(path)


def _by_function(flag: str, source: str, system: str, sounds: list[str]) -> np.ndarray:
    module, _, function = source.partition(":")
    try:
        call = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{flag}={source}: {error}; the module must be on PYTHONPATH") from error
    audio = (waveform.read(sound) for sound in sounds)
    return np.concatenate([np.atleast_2d(call(waveform.mono(x), rate)) for x, rate in audio])


def _by_command(flag: str, source: str, system: str, sounds: list[str]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        for number, sound in enumerate(sounds):
            os.symlink(os.path.abspath(sound), os.path.join(folder, f"{number:06d}.flac"))
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            commands.run(source, {"folder": folder, "output": file.name}, flag, f"the sounds of {system}")
            try:
                return np.load(file.name)
            except (ValueError, EOFError) as error:
                raise ValueError(f"{flag}: the command wrote no .npy file to {{output}} ({error})") from error
