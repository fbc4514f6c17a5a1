"""Audio and codes of a codec with a language model, which was trained at one loudness."""

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


def write(codec: Codec, target: str, codes: np.ndarray, samples: int, gain: float, seed: int) -> int:
    """Writes codes `[T, F]` as `.bt` file or as audio without the gain; returns the number of clipped samples."""
    if files.ending(target) == ".bt":
        bt_file.write_codes(target, codes, codec.header, samples)
        return 0
    with waveform.Writer(target, codec.sample_rate_hz, codec.channels) as writer:
        blocks = codec.decode_stream([codes], seed, samples=samples)
        for audio in files.progress(blocks, samples, codec.sample_rate_hz):
            writer.write(audio / np.float32(gain))
    return writer.clipped_samples
