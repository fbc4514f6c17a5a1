"""Window and mel filters of a spectrum in plain NumPy."""

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt

PADDINGS = ("same", "center", "none")


MAX_MELS, MAX_FFT_SAMPLES = 1024, 1 << 16  # our limits: the filters are one matrix of both


@dataclasses.dataclass(frozen=True)
class MelDefinition:
    """The definition of a log-mel. The default is BigVGAN v2's 44.1 kHz, 128-band, hop-512 mel.

    Attributes:
      sample_rate_hz: sample rate of the audio.
      fft_samples: length of a frame and of its window.
      hop_samples: distance of two frames.
      mels: M, number of mel bins.
      low_hz: lower edge of the lowest bin.
      high_hz: upper edge of the highest bin.
      scale: "slaney" (linear below 1 kHz, as librosa's default) or "htk".
      area_norm: every triangle has the same area (Slaney), else the same height 1.
      padding: samples mirrored at both ends. "same" mirrors (fft - hop) / 2, so that T = S // hop. "center" mirrors
        fft / 2, so that T = S // hop + 1. "none" adds nothing, so that T = (S - fft) // hop + 1.
      floor: mel values below it are raised to it before the logarithm.
      epsilon: added to the squared magnitude, so that its root has a gradient at silence.
      power: exponent of the magnitudes before the filters, 1 or 2.
    """

    sample_rate_hz: int = 44_100
    fft_samples: int = 2048
    hop_samples: int = 512
    mels: int = 128
    low_hz: float = 0.0
    high_hz: float = 22_050.0
    scale: str = "slaney"
    area_norm: bool = True
    padding: str = "same"
    floor: float = 1e-5
    epsilon: float = 1e-9
    power: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate_hz / 2:
            raise ValueError(
                f"a mel from {self.low_hz} to {self.high_hz} Hz at {self.sample_rate_hz} Hz:"
                f" 0 <= low_hz < high_hz <= {self.sample_rate_hz / 2} is needed; set high_hz to half the sample rate"
            )
        if not (0 < self.mels <= MAX_MELS and self.fft_samples <= MAX_FFT_SAMPLES):
            raise ValueError(
                f"a mel of {self.mels} bands and {self.fft_samples} fft_samples: use 1 to {MAX_MELS} bands and at "
                f"most {MAX_FFT_SAMPLES} samples"
            )
        if self.scale not in ("slaney", "htk"):
            raise ValueError(f"mel scale {self.scale!r}; use 'slaney' or 'htk'")
        if self.padding not in PADDINGS:
            raise ValueError(f"padding {self.padding!r}; use one of {', '.join(PADDINGS)}")
        if not (0 < self.floor < math.inf and 0 <= self.epsilon < math.inf):
            raise ValueError(
                f"a mel with floor {self.floor} and epsilon {self.epsilon}: the floor, of which a logarithm is taken, "
                "must be above 0, as 1e-5 is, and epsilon at least 0"
            )
        if self.power not in (1, 2):
            raise ValueError(f"a mel of the {self.power!r}th power of the magnitudes: set power to 1 or 2")
        if not 0 < self.hop_samples <= self.fft_samples:
            raise ValueError(f"a hop of {self.hop_samples} samples; use 1 to fft_samples = {self.fft_samples}")


# MelTok's recipe, written there with torchaudio. Its magnitude has no epsilon; ours is far below the floor's square.
MELTOK = MelDefinition(
    fft_samples=1024,
    hop_samples=256,
    mels=96,
    scale="htk",
    area_norm=False,
    padding="center",
    floor=1e-7,
    epsilon=1e-18,
)

# That of the published 24 kHz Vocos, written with torchaudio too.
VOCOS_24KHZ = dataclasses.replace(MELTOK, sample_rate_hz=24_000, high_hz=12_000.0, mels=100)

# AudioLDM's 48 kHz recipe, that of MuCodec. Its magnitude has no epsilon; ours is far below the floor's square.
AUDIOLDM_48KHZ = MelDefinition(
    sample_rate_hz=48_000,
    hop_samples=480,
    mels=256,
    low_hz=20.0,
    high_hz=24_000.0,
    padding="center",
    epsilon=1e-14,
)

# That of MuCodec's encoder, of the power spectrum: torchaudio's defaults, in decibels there.
MUENCODER = dataclasses.replace(
    VOCOS_24KHZ, fft_samples=2048, hop_samples=240, mels=128, floor=1e-10, epsilon=0.0, power=2
)

# Slaney's Auditory Toolbox: 200/3 Hz a mel up to 1 kHz, then 27 mels for every factor of 6.4.
SLANEY_HZ_PER_MEL, SLANEY_KNEE_HZ, SLANEY_LOG_STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def hann_window(samples: int) -> np.ndarray:
    """Returns the periodic Hann window, float64 `[samples]`; equal to SciPy's, whose import takes a second."""
    return 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, samples + 1)[:-1])


def hz_to_mel(hz: npt.ArrayLike, scale: str) -> np.ndarray:
    """Returns the mels of frequencies in Hz."""
    hz = np.asarray(hz, np.float64)
    if scale == "htk":
        return 2595 * np.log10(1 + hz / 700)
    above = np.log(np.maximum(hz, SLANEY_KNEE_HZ) / SLANEY_KNEE_HZ) / SLANEY_LOG_STEP
    return np.minimum(hz, SLANEY_KNEE_HZ) / SLANEY_HZ_PER_MEL + above


def mel_to_hz(mel: npt.ArrayLike, scale: str) -> np.ndarray:
    """Returns the frequencies in Hz of mels, the inverse of `hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    knee = SLANEY_KNEE_HZ / SLANEY_HZ_PER_MEL
    return SLANEY_HZ_PER_MEL * np.minimum(mel, knee) * np.exp(SLANEY_LOG_STEP * np.maximum(mel - knee, 0))


def _corners_hz(definition: MelDefinition) -> np.ndarray:
    """Returns the `[M + 2]` corner frequencies of the triangles."""
    low, high = hz_to_mel([definition.low_hz, definition.high_hz], definition.scale)
    return mel_to_hz(np.linspace(low, high, definition.mels + 2), definition.scale)


def band_edges_hz(definition: MelDefinition) -> np.ndarray:
    """Returns the lower and upper edge of every filter, `[M, 2]`; neighbours overlap by half."""
    corners = _corners_hz(definition)
    return np.stack([corners[:-2], corners[2:]], axis=1)


@functools.cache
def mel_filterbank(definition: MelDefinition) -> np.ndarray:
    """Returns the filters, float64 `[bins, M]`, to multiply a magnitude spectrum `[T, bins]` from the right."""
    corners = _corners_hz(definition)
    bins_hz = np.fft.rfftfreq(definition.fft_samples, 1 / definition.sample_rate_hz)[:, None]
    rising = (bins_hz - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins_hz) / (corners[2:] - corners[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    if definition.area_norm:
        filters *= 2 / (corners[2:] - corners[:-2])
    filters.flags.writeable = False  # The cache returns the same array to all callers.
    return filters
