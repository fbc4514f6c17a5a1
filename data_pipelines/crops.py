"""Records -> a batch of training examples: crops at random places, mixed to mono, at the wanted loudness, augmented.

Everything random about an example comes from a generator of its own, so it does not depend on the rest of the batch.
"""

from dataclasses import dataclass

import numpy as np

from bandtok_jax.audio import waveform

INT16_SCALE = 32_768
STRETCH_SAMPLES = 16_384


def caption_bytes(text, size):
    """UTF-8 bytes `[size]`, zero padded, cut between characters."""
    data = text.encode()[:size].decode(errors="ignore").encode()
    return np.frombuffer(data.ljust(size, b"\0"), np.uint8)


def mix_down(audio, start, out):
    """Fills `out` float32 `[S]`, full scale at 1, with the channel mean of `audio` int16 `[any, C]` from `start` on.

    -> how many samples there were. In stretches, so that stored sound goes from the file straight into `out`: large
    arrays for every step in between would cost more in page faults than the arithmetic does.
    """
    samples, channels = min(len(out), len(audio) - start), audio.shape[1]
    scale = np.float32(1 / (INT16_SCALE * channels))
    for first in range(0, samples, STRETCH_SAMPLES):
        last = min(first + STRETCH_SAMPLES, samples)
        sound = audio[start + first : start + last]
        if channels == 1:
            np.multiply(sound[:, 0], scale, out=out[first:last])
        else:
            np.matmul(sound.astype(np.float32), np.full(channels, scale), out=out[first:last])
    out[samples:] = 0
    return samples


def _choices(records, generators, places):
    """A generator (or None) and a place for each record."""
    return generators or [None] * len(records), places or [0.0] * len(records)


def _start(spare, rng, place):
    """Where a crop begins if `spare` samples or columns are left beside it."""
    return int(rng.integers(spare + 1)) if rng else round(place * spare)


def rotate_phase(audio, angle):
    """Turns the phase of every frequency of `[S]` by one angle in radians: another waveform, the same magnitudes.

    The crop is one period for the FFT, so there is no window and no seam inside it.
    """
    spectrum = np.fft.rfft(audio)
    spectrum[1:] *= np.complex64(np.exp(1j * angle))  # the mean has no phase
    return np.fft.irfft(spectrum, len(audio)).astype(np.float32)


@dataclass(frozen=True)
class AudioCrop:
    """Audio records -> {'audio': float32 [B, clip_samples], 'caption': uint8 [B, caption_bytes]}.

    gain_db: range of a random gain. phase_rotation: one random angle for a crop. loudness_lufs: brings the mix-down of
    the whole track to this loudness (None: as it is). The peak never exceeds 1: a gain that would clip is lowered. A
    record shorter than the crop is padded with zeros.
    """

    clip_samples: int
    sample_rate_hz: int
    gain_db: tuple = (0.0, 0.0)
    phase_rotation: bool = False
    loudness_lufs: float | None = None
    caption_bytes: int = 512

    def batch(self, records, generators=None, places=None):
        """Random augmented crops, one `np.random.Generator` for each; or crops as they are, at `places` in [0, 1]."""
        audio = np.empty((len(records), self.clip_samples), np.float32)
        for row, record, rng, place in zip(audio, records, *_choices(records, generators, places)):
            self._fill(row, record, rng, place)
        captions = [caption_bytes(record["caption"], self.caption_bytes) for record in records]
        return {"audio": audio, "caption": np.stack(captions)}

    def _fill(self, row, record, rng, place):
        audio, rate = record["audio"], record["sample_rate_hz"]
        samples = -(-self.clip_samples * rate // self.sample_rate_hz)  # at the record's own rate
        start = _start(max(0, len(audio) - samples), rng, place)
        gain_db = rng.uniform(*self.gain_db) if rng else 0.0
        if getattr(audio, "one_read", False):
            audio, start = audio[start : start + samples], 0
        if rate == self.sample_rate_hz:
            heard = mix_down(audio, start, row)
        else:
            own = np.empty(min(samples, len(audio)), np.float32)
            mix_down(audio, start, own)
            own = waveform.resample(own, rate, self.sample_rate_hz)[: self.clip_samples]
            heard = len(own)
            row[:heard], row[heard:] = own, 0
        sound = row[:heard]
        if rng and self.phase_rotation:
            sound[:] = rotate_phase(sound, rng.uniform(-np.pi, np.pi))
        if self.loudness_lufs is not None:
            gain_db += self.loudness_lufs - record["mono_lufs"]
        if gain_db or rng and self.phase_rotation:
            gain = 10 ** (gain_db / 20)
            sound *= np.float32(gain / max(1.0, gain * float(max(sound.max(initial=0), -sound.min(initial=0)))))


@dataclass(frozen=True)
class TokenCrop:
    """Token records -> {'codes': int32 [B, columns, F], 'columns', 'ended', 'start', 'caption', 'embedding' where the
    records have one}.
    """

    columns: int
    caption_bytes: int = 512

    def batch(self, records, generators=None, places=None):
        """Crops at random places, one `np.random.Generator` for each; or whole ones, at `places` in [0, 1]."""
        examples = [self._example(*choice) for choice in zip(records, *_choices(records, generators, places))]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}

    def _example(self, record, rng, place):
        length = len(record["codes"])
        # A window that may reach over both ends of the track: so every column, the beginning and the end are each in
        # as many of its places, and are learned as often as they come in music.
        places = length + self.columns - 1
        window = 1 - self.columns + (int(rng.integers(places)) if rng else round(place * (places - 1)))
        if rng is None:  # what reaches over an end moves inside: short crops would show less, for the same work
            window = min(max(window, 0), max(length - self.columns, 0))
        return self.example(record, max(window, 0), window + self.columns)

    def example(self, record, start, stop):
        """The columns of a record from `start` to `stop`, which may lie behind its end, padded with zeros."""
        codes = record["codes"][start:stop]
        example = {
            "codes": np.pad(codes, ((0, self.columns - len(codes)), (0, 0))).astype(np.int32),
            "columns": np.int32(len(codes)),
            "ended": np.bool_(stop >= len(record["codes"]) and record["ends"]),
            "start": np.int32(start),
            "caption": caption_bytes(record["caption"], self.caption_bytes),
        }
        if "embedding" in record:
            example["embedding"] = np.asarray(record["embedding"], np.float32)
        return example
