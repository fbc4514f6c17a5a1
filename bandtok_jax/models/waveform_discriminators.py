"""The critics of sound: multi-period, multi-scale and complex multi-band multi-resolution STFT discriminators.

Multi-period: Kong et al. (HiFi-GAN, arXiv 2010.05646). Multi-scale: Kumar et al. (MelGAN, arXiv 1910.06711). STFT:
Kumar et al. (DAC, arXiv 2306.06546). Sizes as in descript-audio-codec, model/discriminator.py, which weight-
normalises every convolution, and whose published trainings have no multi-scale critics.
"""

from collections.abc import Sequence
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.audio.spectral import stft
from bandtok_jax.layers.convolution import Convolution, fan_in_uniform

SLOPE = 0.1  # of the leaky rectifiers
PEAK = 0.8  # every sound is scaled to it: a critic shall not judge loudness
QUIETEST_PEAK = 1e-3  # our choice: scaled further, near silence would have nearly all of the gradient of a batch
PEAK_ROUNDING = 1e-6  # our choice: some units in the last place of 32 bits
SCALE_CHANNELS = (16, 64, 256, 1024, 1024, 1024)
LOW_PASS = dict(zeros=24, rolloff=0.945)  # of resampling: julius, by which the published code resamples
BAND_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # fractions of the Nyquist frequency


class WaveformDiscriminators(nnx.Module):
    """All critics of a sound, `[B, S]` -> `(logits, features)`: one entry per critic, period critics first, then
    those of scales.

    Args:
      periods: of the multi-period critics; () for none.
      period_channels: of their layers; all but the last stride by 3.
      rates: of the multi-scale critics: each hears one of so many samples; () for none, as published.
      stft_windows: lengths in samples of the STFT critics; () for none.
      stft_channels: of all their layers.
      normalisation: "none" or "weight", see `Convolution`.
      dtype: of the convolutions; the STFT and the logits are at least float32.
    """

    def __init__(
        self,
        *,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        period_channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        rates: Sequence[int] = (),
        stft_windows: Sequence[int] = (2048, 1024, 512),
        stft_channels: int = 32,
        normalisation: str = "none",
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        settings = dict(normalisation=normalisation, dtype=dtype, rngs=rngs)
        self.periods = nnx.List([PeriodDiscriminator(period, period_channels, **settings) for period in periods])
        self.scales = nnx.List([ScaleDiscriminator(rate, SCALE_CHANNELS, **settings) for rate in rates])
        self.spectra = nnx.List([SpectrumDiscriminator(window, stft_channels, **settings) for window in stft_windows])

    def __call__(self, audio: jax.Array) -> tuple[list[jax.Array], list[list[jax.Array]]]:
        audio = audio - audio.mean(-1, keepdims=True)
        audio = PEAK * audio / jnp.maximum(_peak(audio), QUIETEST_PEAK)
        verdicts = [critic(audio) for critic in (*self.periods, *self.scales, *self.spectra)]
        return [logits for logits, _ in verdicts], [features for _, features in verdicts]


def _peak(audio: jax.Array) -> jax.Array:
    """The largest magnitude, `[..., S] -> [..., 1]`, moved by all samples that reach it but for a rounding.

    A sound that repeats itself, as one of equal codes does, has its peak several times: with the gradient of the
    maximum, a last bit would decide which of them moves.
    """
    size = jnp.abs(audio)
    peak = jax.lax.stop_gradient(size.max(-1, keepdims=True))
    mean = size.mean(-1, keepdims=True, where=size >= (1 - PEAK_ROUNDING) * peak)
    return mean + jax.lax.stop_gradient(peak - mean)


def _logits_layer(channels: int, kernel: Sequence[int], settings) -> Convolution:
    """The last layer of a critic, whose logits are in float32 or wider."""
    wide = {"initializer": fan_in_uniform, **settings, "dtype": jnp.promote_types(settings["dtype"], jnp.float32)}
    return Convolution(channels, 1, kernel, **wide)


class PeriodDiscriminator(nnx.Module):
    """Looks at every `period`-th sample: `[B, S]` -> `([B, period, patches], features)`.

    The published (5, 1) convolutions over a picture `[S / period, period]` are convolutions over time of `period`
    independent rows, and are computed so.
    """

    def __init__(self, period: int, channels: Sequence[int], **settings):
        self.period = period
        strides = [3] * (len(channels) - 1) + [1]
        self.layers = nnx.List(
            [
                Convolution(i, o, (5,), stride=(stride,), initializer=fan_in_uniform, **settings)
                for i, o, stride in zip((1, *channels), channels, strides)
            ]
        )
        self.logits = _logits_layer(channels[-1], (3,), settings)

    def __call__(self, audio: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        batch, samples = audio.shape
        audio = jnp.pad(audio, ((0, 0), (0, -samples % self.period)), mode="reflect")
        x = audio.reshape(batch, -1, self.period).swapaxes(1, 2).reshape(batch * self.period, -1, 1)
        features = []
        for layer in self.layers:
            x = jax.nn.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return self.logits(x).reshape(batch, self.period, -1), features


class ScaleDiscriminator(nnx.Module):
    """Looks at the sound at a `rate`-th of its sample rate: `[B, S]` -> `([B, patches], features)`.

    Args:
      channels: of the layers; all but the first and the last stride by 4, in groups that see 4 channels each.
    """

    def __init__(self, rate: int, channels: Sequence[int], **settings):
        self.rate = rate
        settings["initializer"] = fan_in_uniform
        first, *wide, last = zip((1, *channels), channels)
        self.layers = nnx.List(
            [
                Convolution(*first, (15,), **settings),
                *[Convolution(i, o, (41,), stride=(4,), groups=i // 4, **settings) for i, o in wide],
                Convolution(*last, (5,), **settings),
            ]
        )
        self.logits = _logits_layer(channels[-1], (3,), settings)

    def __call__(self, audio: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        x, features = decimate(audio, self.rate)[..., None], []
        for layer in self.layers:
            x = jax.nn.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return self.logits(x)[..., 0], features


def decimate(audio: jax.Array, rate: int) -> jax.Array:
    """One of `rate` samples, low-passed before; `[B, S] -> [B, S // rate]`. The ends are held."""
    if rate == 1:
        return audio
    zeros, rolloff = LOW_PASS["zeros"], LOW_PASS["rolloff"]
    width = math.ceil(zeros * rate / rolloff)
    time = np.clip(np.arange(-width, width + rate) / rate * rolloff, -zeros, zeros)
    taps = np.sinc(time) * np.cos(np.pi * time / zeros / 2) ** 2
    taps = jnp.asarray(taps / taps.sum(), audio.dtype)[:, None, None]
    padded = jnp.pad(audio, ((0, 0), (width, width + rate)), mode="edge")[..., None]
    made = jax.lax.conv_general_dilated(padded, taps, (rate,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    return made[:, : audio.shape[1] // rate, 0]


class SpectrumDiscriminator(nnx.Module):
    """On real and imaginary parts of an STFT, each band with its own layers: `[B, S]` -> `([B, T, bins], features)`."""

    def __init__(self, window: int, channels: int, **settings):
        self.window = window
        self.edges = [int(fraction * (window // 2 + 1)) for fraction in BAND_EDGES]
        settings["initializer"] = fan_in_uniform

        def band():
            wide = [Convolution(channels, channels, (3, 9), stride=(1, 2), **settings) for _ in range(3)]
            return nnx.List(
                [
                    Convolution(2, channels, (3, 9), **settings),
                    *wide,
                    Convolution(channels, channels, (3, 3), **settings),
                ]
            )

        self.bands = nnx.List([band() for _ in self.edges[1:]])
        self.logits = _logits_layer(channels, (3, 3), settings)

    def __call__(self, audio: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        spectrum = stft(audio, self.window, self.window // 4, padding="same")
        picture = jnp.stack([spectrum.real, spectrum.imag], axis=-1)
        features, ends = [], []
        for layers, low, high in zip(self.bands, self.edges[:-1], self.edges[1:]):
            x = picture[:, :, low:high]
            for layer in layers:
                x = jax.nn.leaky_relu(layer(x), SLOPE)
                features.append(x)
            ends.append(x)
        return self.logits(jnp.concatenate(ends, axis=2))[..., 0], features
