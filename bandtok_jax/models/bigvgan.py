"""BigVGAN: log-mel frames to audio by transposed convolutions and anti-aliased Snake (arXiv 2206.04658).

Lee et al. 2023. The default is `bigvgan_v2_44khz_128band_512x`, whose mel is that of `bandtok`. It is HiFi-GAN with
another activation, and without one before the transposed convolutions.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.audio.mel_bands import MelDefinition
from bandtok_jax.layers.anti_aliased_snake import AntiAliasedSnake
from bandtok_jax.layers.convolution import Convolution, ValidRange, mask_outside
from bandtok_jax.models.hifigan import HiFiGAN

OUTPUTS = ("clip", "tanh")


class BigVGANBlock(nnx.Module):
    """Residual pairs of a dilated and a plain convolution, `[B, T, C]`, each after an anti-aliased Snake."""

    ACTIVATION_RADIUS = AntiAliasedSnake.RADIUS

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int], **layer: Any):
        self.dilated = nnx.List(
            [Convolution(channels, channels, (kernel_size,), dilation=(dilation,), **layer) for dilation in dilations]
        )
        self.plain = nnx.List([Convolution(channels, channels, (kernel_size,), **layer) for _ in dilations])
        self.activations = nnx.List([AntiAliasedSnake(channels, rngs=layer["rngs"]) for _ in range(2 * len(dilations))])

    def __call__(self, x: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        first, second = self.activations[::2], self.activations[1::2]
        for dilated, plain, before, between in zip(self.dilated, self.plain, first, second):
            y = dilated(mask_outside(before(x, valid_range), valid_range))
            x = x + plain(mask_outside(between(y, valid_range), valid_range))
        return x


class BigVGAN(HiFiGAN):
    """A vocoder, `[B, T, M]` natural-log mel to audio, `[B, T * hop_samples]`; see `HiFiGAN`.

    Beyond a file every convolution sees zeros, and every activation the first or last value.

    Args:
      mel, initial_channels, block_kernel_sizes, dilations, normalisation, dtype: as for `HiFiGAN`.
      rates: factor of each stage, all even, whose product is the hop. The kernel of a stage has twice that size.
      output: "clip" limits the audio to [-1, 1], as version 2, or "tanh", as version 1.
    """

    BLOCK = BigVGANBlock
    SHARDING = (*HiFiGAN.SHARDING, (r"log_alpha|log_beta", P()))

    def __init__(
        self,
        *,
        mel: MelDefinition = MelDefinition(),
        initial_channels: int = 1536,
        rates: Sequence[int] = (8, 4, 2, 2, 2, 2),
        block_kernel_sizes: Sequence[int] = (3, 7, 11),
        dilations: Sequence[int] = (1, 3, 5),
        output: str = "clip",
        normalisation: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if any(rate % 2 for rate in rates):
            raise ValueError(f"rates are {tuple(rates)}: set rates to even numbers whose product is the hop")
        if output not in OUTPUTS:
            raise ValueError(f'output is "{output}": set it to "clip" or "tanh"')
        super().__init__(
            mel=mel,
            initial_channels=initial_channels,
            rates=rates,
            block_kernel_sizes=block_kernel_sizes,
            dilations=dilations,
            normalisation=normalisation,
            dtype=dtype,
            rngs=rngs,
        )
        self.output = output
        self.activation = AntiAliasedSnake(initial_channels // 2 ** len(self.rates), rngs=rngs)

    def _activate_for_stage(self, x: jax.Array) -> jax.Array:
        return x

    def _activate_last(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        return self.activation(x, valid_range)

    def _limit(self, audio: jax.Array) -> jax.Array:
        return jnp.tanh(audio) if self.output == "tanh" else jnp.clip(audio, -1, 1)
