"""Audio and codes of a codec with a language model, which was trained at one loudness."""

from collections.abc import Iterable
import os

import numpy as np

from bandtok_jax.audio import loudness, waveform
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.commands import files
from bandtok_jax.formats import bt_file
from bandtok_jax.runtime import untrusted


def encode(codec: Codec, path: str) -> tuple[np.ndarray, int, float]:
    """Returns the codes `[T, F]` of an audio file at the loudness of the training, its samples, and the gain."""
    with untrusted.naming(path):
        audio = np.concatenate(list(files.codec_input(codec, path)), axis=-1)
        gain = training_gain(codec, audio)
        codes = np.concatenate(list(codec.encode_stream([audio * np.float32(gain)])))
        return codes, audio.shape[-1], gain


def training_gain(codec: Codec, audio: np.ndarray) -> float:
    """Returns the factor that brings audio, `[S]` or `[C, S]`, to the loudness of the training."""
    lufs = loudness.integrated_lufs(waveform.mono(np.atleast_2d(audio))[None], codec.sample_rate_hz)
    target_lufs = codec.components["tokenizer"].config.data.loudness_lufs
    return loudness.gain_to(target_lufs, lufs, float(np.abs(audio).max()))


def check_target(codec: Codec, target: str) -> None:
    """Raises ValueError unless `write` can write a file of this name."""
    ending = files.ending(target)
    if os.path.isdir(target):
        raise ValueError(f"{target} is a folder: name the file, such as {os.path.join(target, 'new.wav')}")
    if ending not in (".bt", *waveform.SUBTYPES):
        raise ValueError(
            f"{target}: cannot write {ending or 'a file without ending'}; use .bt, {', '.join(waveform.SUBTYPES)}"
        )
    if ending != ".bt":
        codec.require_decoder()


def write(
    codec: Codec, target: str, blocks: Iterable[np.ndarray], samples: int, gain: float, seed: int, *, show: bool = True
) -> tuple[int, int]:
    """Writes blocks of codes `[any, F]` as `.bt` file, or as audio without the gain.

    Args:
      blocks: are decoded as they come.
      samples: length of the audio, which is shorter where the codes end before.
      show: show the progress of the decoding.

    Returns:
      The numbers of samples, and of clipped ones.
    """
    if files.ending(target) == ".bt":
        codes = np.concatenate(list(blocks))
        samples = min(samples, len(codes) * codec.samples_per_column)
        bt_file.write_codes(target, codes, codec.header, samples)
        return samples, 0
    with waveform.Writer(target, codec.sample_rate_hz, codec.channels) as writer:
        remaining = samples
        blocks_of_audio = codec.decode_stream(blocks, seed)
        for audio in files.progress(blocks_of_audio, samples, codec.sample_rate_hz, show=show):
            audio = audio[..., :remaining]  # the last column may be longer
            remaining -= audio.shape[-1]
            writer.write(audio / np.float32(gain))
    return samples - remaining, writer.clipped_samples
