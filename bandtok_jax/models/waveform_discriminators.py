"""Discriminators of waveforms: multi-period, multi-scale and complex multi-band multi-resolution STFT.

Multi-period: Kong et al. (HiFi-GAN, arXiv 2010.05646). Multi-scale: Kumar et al. (MelGAN, arXiv 1910.06711). STFT:
Kumar et al. (DAC, arXiv 2306.06546). Sizes are those of descript-audio-codec, model/discriminator.py, which weight-
normalises every convolution, and whose published trainings have no multi-scale discriminators.
"""

from collections.abc import Sequence
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
import numpy as np

from bandtok_jax.audio.spectral import stft
from bandtok_jax.layers.convolution import Convolution, fan_in_uniform

LEAK = 0.1  # of the leaky rectifiers
PEAK = 0.8  # of the scaled audio: logits must not depend on loudness
LOWEST_PEAK = 1e-3  # our choice: scaled further, near silence would have nearly all of the gradient of a batch
PEAK_ROUNDING = 1e-6  # our choice: some units in the last place of 32 bits
SCALE_CHANNELS = (16, 64, 256, 1024, 1024, 1024)
LOW_PASS = dict(zeros=24, rolloff=0.945)  # of resampling: julius, by which the published code resamples
MIN_WINDOW = 18  # samples of an STFT in which every band has a bin
BAND_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # fractions of the Nyquist frequency

LogitsAndFeatures = tuple[jax.Array, list[jax.Array]]


class WaveformDiscriminators(nnx.Module):
    """All discriminators of audio `[B, S]`, in the order multi-period, multi-scale, STFT.

    Args:
      periods: periods of the multi-period discriminators; () for none.
      period_channels: channels of their layers; all but the last have stride 3.
      rates: decimation of the input of the multi-scale discriminators; () for none, as published.
      stft_windows: windows of the STFT discriminators in samples; () for none.
      stft_channels: channels of all their layers.
      stft_padding: "same", or "center" as torchaudio's transform; see `MelDefinition`.
      normalisation: "none", "weight" or "spectral", see `Convolution`.
      feature_maps: "hidden" returns the activations of all layers but the last. "vocos" leaves out those of the first
        layers and adds the logits (github.com/gemelo-ai/vocos, discriminators.py).
      family_weights: weights in the losses of the means over the multi-period, the multi-scale and the STFT
        discriminators; () for the mean over all discriminators.
      dtype: dtype of the convolutions; the STFT and the logits are at least float32.
    """

    OPTIONAL_SIZES = ("periods", "stft_windows")
    SHARDING = (
        (r"periods/\d+/layers/[1-9]\d*/kernel|scales/\d+/layers/5/kernel", P(None, "fsdp", "tensor")),
        (r"layers/0/kernel|scales/\d+/layers/[1-4]/kernel|logits/kernel|bands/.*/kernel|bias|gain", P()),
    )

    def __init__(
        self,
        *,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        period_channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        rates: Sequence[int] = (),
        stft_windows: Sequence[int] = (2048, 1024, 512),
        stft_channels: int = 32,
        stft_padding: str = "same",
        normalisation: str = "none",
        feature_maps: str = "hidden",
        family_weights: Sequence[float] = (),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if feature_maps not in ("hidden", "vocos"):
            raise ValueError(f'feature_maps is "{feature_maps}": set it to "hidden" or "vocos"')
        if not (periods or rates) or min((*periods, *rates)) < 1 or min(stft_windows, default=MIN_WINDOW) < MIN_WINDOW:
            raise ValueError(
                f"periods are {tuple(periods)}, rates {tuple(rates)} and stft_windows {tuple(stft_windows)}: give a "
                f"period or a rate, each at least 1, and windows of at least {MIN_WINDOW} samples; without "
                'discriminators set kind to "none"'
            )
        if periods and len(period_channels) < 2:
            raise ValueError(f"period_channels are {tuple(period_channels)}: give two layers or more")
        if len(family_weights) not in (0, 3):
            raise ValueError(
                f"family_weights has {len(family_weights)} values: give one each for the multi-period, the multi-scale "
                "and the STFT discriminators, or ()"
            )
        self.feature_maps = feature_maps
        options: dict[str, Any] = dict(normalisation=normalisation, dtype=dtype, rngs=rngs)
        self.periods = nnx.List([PeriodDiscriminator(period, period_channels, **options) for period in periods])
        self.scales = nnx.List([ScaleDiscriminator(rate, SCALE_CHANNELS, **options) for rate in rates])
        self.spectra = nnx.List(
            [STFTDiscriminator(window, stft_channels, padding=stft_padding, **options) for window in stft_windows]
        )
        families = zip(family_weights, (self.periods, self.scales, self.spectra))
        weights = [weight / len(family) for weight, family in families for _ in family]
        # The weight of each discriminator in the losses, see `models.registry`.
        self.loss_weights = tuple(weights) if family_weights else None

    def __call__(self, audio: jax.Array) -> tuple[list[jax.Array], list[list[jax.Array]]]:
        """Returns the logits and the list of activations of each discriminator."""
        audio = audio - audio.mean(-1, keepdims=True)
        audio = PEAK * audio / jnp.maximum(peak_magnitude(audio), LOWEST_PEAK)
        logits, features = [], []
        for discriminator in (*self.periods, *self.scales, *self.spectra):
            own_logits, maps = discriminator(audio)
            if self.feature_maps == "vocos":
                layers = len(maps) // (len(BAND_EDGES) - 1 if isinstance(discriminator, STFTDiscriminator) else 1)
                maps = [*(x for number, x in enumerate(maps) if number % layers), own_logits]
            logits.append(own_logits)
            features.append(maps)
        return logits, features


class PeriodDiscriminator(nnx.Module):
    """A discriminator of every `period`-th sample, `[B, S]` to logits `[B, period, patches]`.

    The published (5, 1) convolutions over `[S / period, period]` are convolutions over time of `period` independent
    rows, and are computed so.
    """

    def __init__(
        self,
        period: int,
        channels: Sequence[int],
        *,
        normalisation: str,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.period = period
        strides = [3] * (len(channels) - 1) + [1]
        options: dict[str, Any] = dict(initializer=fan_in_uniform, normalisation=normalisation, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [
                Convolution(i, o, (5,), stride=(stride,), **options)
                for i, o, stride in zip((1, *channels), channels, strides)
            ]
        )
        self.logits = _logits_layer(channels[-1], (3,), normalisation, dtype, rngs)

    def __call__(self, audio: jax.Array) -> LogitsAndFeatures:
        batch, samples = audio.shape
        audio = jnp.pad(audio, ((0, 0), (0, -samples % self.period)), mode="reflect")
        # x [B * period, S / period, 1]
        x = audio.reshape(batch, -1, self.period).swapaxes(1, 2).reshape(batch * self.period, -1, 1)
        features = []
        for layer in self.layers:
            x = jax.nn.leaky_relu(layer(x), LEAK)
            features.append(x)
        return self.logits(x).reshape(batch, self.period, -1), features


class ScaleDiscriminator(nnx.Module):
    """A discriminator of audio at a `rate`-th of its sample rate, `[B, S]` to logits `[B, patches]`.

    Args:
      channels: channels of the layers; all but the first and the last have stride 4 and groups of 4 input channels.
    """

    def __init__(
        self,
        rate: int,
        channels: Sequence[int],
        *,
        normalisation: str,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.rate = rate
        options: dict[str, Any] = dict(initializer=fan_in_uniform, normalisation=normalisation, dtype=dtype, rngs=rngs)
        first, *middle, last = zip((1, *channels), channels)
        self.layers = nnx.List(
            [
                Convolution(*first, (15,), **options),
                *[Convolution(i, o, (41,), stride=(4,), groups=i // 4, **options) for i, o in middle],
                Convolution(*last, (5,), **options),
            ]
        )
        self.logits = _logits_layer(channels[-1], (3,), normalisation, dtype, rngs)

    def __call__(self, audio: jax.Array) -> LogitsAndFeatures:
        x, features = decimate(audio, self.rate)[..., None], []
        for layer in self.layers:
            x = jax.nn.leaky_relu(layer(x), LEAK)
            features.append(x)
        return self.logits(x)[..., 0], features


class STFTDiscriminator(nnx.Module):
    """A discriminator of the bands of a complex STFT, each with its own layers, `[B, S]` to logits `[B, T, bins]`."""

    def __init__(
        self,
        window: int,
        channels: int,
        *,
        padding: str = "same",
        normalisation: str,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.window, self.padding = window, padding
        self.edges = [int(fraction * (window // 2 + 1)) for fraction in BAND_EDGES]
        options: dict[str, Any] = dict(initializer=fan_in_uniform, normalisation=normalisation, dtype=dtype, rngs=rngs)

        def band() -> nnx.List:
            strided = [Convolution(channels, channels, (3, 9), stride=(1, 2), **options) for _ in range(3)]
            first = Convolution(2, channels, (3, 9), **options)
            return nnx.List([first, *strided, Convolution(channels, channels, (3, 3), **options)])

        self.bands = nnx.List([band() for _ in self.edges[1:]])
        self.logits = _logits_layer(channels, (3, 3), normalisation, dtype, rngs)

    def __call__(self, audio: jax.Array) -> LogitsAndFeatures:
        spectrum = stft(audio, self.window, self.window // 4, padding=self.padding)
        parts = jnp.stack([spectrum.real, spectrum.imag], axis=-1)  # [B, T, bins, 2]
        features, outputs = [], []
        for layers, low, high in zip(self.bands, self.edges[:-1], self.edges[1:]):
            x = parts[:, :, low:high]
            for layer in layers:
                x = jax.nn.leaky_relu(layer(x), LEAK)
                features.append(x)
            outputs.append(x)
        return self.logits(jnp.concatenate(outputs, axis=2))[..., 0], features


def decimate(audio: jax.Array, rate: int) -> jax.Array:
    """Returns every `rate`-th sample after a low-pass filter that holds the ends; `[B, S] -> [B, S // rate]`."""
    if rate == 1:
        return audio
    zeros, rolloff = LOW_PASS["zeros"], LOW_PASS["rolloff"]
    width = math.ceil(zeros * rate / rolloff)
    time = np.clip(np.arange(-width, width + rate) / rate * rolloff, -zeros, zeros)
    kernel = np.sinc(time) * np.cos(np.pi * time / zeros / 2) ** 2
    kernel = jnp.asarray(kernel / kernel.sum(), audio.dtype)[:, None, None]
    padded = jnp.pad(audio, ((0, 0), (width, width + rate)), mode="edge")[..., None]
    filtered = jax.lax.conv_general_dilated(padded, kernel, (rate,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    return filtered[:, : audio.shape[1] // rate, 0]


def peak_magnitude(audio: jax.Array) -> jax.Array:
    """Returns the largest magnitude, `[..., S] -> [..., 1]`, with a gradient to all samples that reach it.

    Periodic audio, such as that of equal codes, has its peak several times. With the gradient of the maximum, the last
    bit would decide which of the samples has it.
    """
    size = jnp.abs(audio)
    peak = jax.lax.stop_gradient(size.max(-1, keepdims=True))
    mean = size.mean(-1, keepdims=True, where=size >= (1 - PEAK_ROUNDING) * peak)
    return mean + jax.lax.stop_gradient(peak - mean)


def _logits_layer(
    channels: int, kernel: Sequence[int], normalisation: str, dtype: DTypeLike, rngs: nnx.Rngs
) -> Convolution:
    """Returns the last layer of a discriminator, whose logits are in float32 or wider."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return Convolution(
        channels, 1, kernel, initializer=fan_in_uniform, normalisation=normalisation, dtype=wide, rngs=rngs
    )
