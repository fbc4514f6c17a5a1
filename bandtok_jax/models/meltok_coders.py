"""Encoder and decoder of MelTok, in the layout of the Cosmos image tokenizer (github.com/NVIDIA/Cosmos-Tokenizer).

Letters: B batch, T mel frames (or columns of the grid), M mel bins, F rows of the grid.
"""

import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.layers import spatial_coders
from bandtok_jax.layers.convolution import ValidRange
from bandtok_jax.layers.grid_windows import GridWindows
from bandtok_jax.layers.haar import haar, inverse_haar
from bandtok_jax.layers.precision import compute_dtype
from bandtok_jax.layers.raise_to_floor import raise_to_floor
from bandtok_jax.layers.spatial_coders import SpatialDecoder, SpatialEncoder
from bandtok_jax.layers.steps import Steps, linear

LOG_MEL_SCALE = 5.0  # published: the networks see natural-log mel divided by 5
INITIAL_LOG_MEL, INITIAL_DETAIL = -5.0, 0.1
SHARDING = (*spatial_coders.SHARDING, (r"(pre|post)_quantization/kernel", P()))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The settings that encoder and decoder share, see `bandtok_jax.models.meltok.MelTok`."""

    haar_levels: int
    channels: tuple[int, ...]
    compression: int
    latent_channels: int
    codebook_dim: int
    activation: str
    attention_levels: tuple[int, ...]
    norm_groups: int
    windows: GridWindows

    def __post_init__(self) -> None:
        powers = range(self.haar_levels, self.haar_levels + len(self.channels) + 1)
        if self.haar_levels < 1 or self.compression not in [2**power for power in powers]:
            raise ValueError(
                f"compression is {self.compression}, with {self.haar_levels} haar_levels and {len(self.channels)} "
                f"channels: set it to a power of 2 from {2 ** powers[0]} to {2 ** powers[-1]}"
            )

    @property
    def halvings(self) -> int:
        """Times that the encoder halves the resolution after the wavelet packet."""
        return self.compression.bit_length() - 1 - self.haar_levels

    def coder_arguments(self, dtype: DTypeLike, rngs: nnx.Rngs) -> dict[str, Any]:
        """Returns the keyword arguments that encoder and decoder share."""
        return dict(
            channels=self.channels,
            attention_levels=self.attention_levels,
            activation=self.activation,
            groups=self.norm_groups,
            dtype=dtype,
            rngs=rngs,
        )


class MelTokEncoder(SpatialEncoder):
    """Natural-log mel `[B, T, M]` to latents `[B, T / compression, F, latent_channels]`; see `MelTok`."""

    def __init__(self, layout: Layout, num_res_blocks: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.layout, self.dtype = layout, dtype
        super().__init__(
            4**layout.haar_levels,
            layout.latent_channels,
            stem_channels=layout.channels[0] // 2,
            halvings=layout.halvings,
            num_blocks=num_res_blocks,
            **layout.coder_arguments(dtype, rngs),
        )

    def __call__(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        return self.layout.windows.apply(self._encode, log_mel, valid_range, (self.layout.compression, 1))

    def _encode(self, log_mel: jax.Array, present: jax.Array | None) -> jax.Array:
        scaled = (log_mel / LOG_MEL_SCALE)[..., None].astype(compute_dtype(self.dtype, log_mel))
        rate = self.layout.compression >> self.layout.haar_levels
        present = None if present is None else jnp.repeat(present, rate, axis=1)
        return self.encode(haar(scaled, self.layout.haar_levels), present)


class MelTokDecoder(SpatialDecoder):
    """Quantized latents `[B, T, F, codebook_dim]` to natural-log mel `[B, T * compression, M]`; see `MelTok`.

    Values below the floor of the front end are raised to it, unless the argument `floor` of a call is False.
    """

    def __init__(
        self,
        layout: Layout,
        num_res_blocks: int,
        *,
        floor: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.layout, self.floor, self.dtype = layout, floor, dtype
        self.post_quantization = nnx.Linear(layout.codebook_dim, layout.latent_channels, dtype=dtype, rngs=rngs)
        super().__init__(
            layout.latent_channels,
            4**layout.haar_levels,
            doublings=layout.halvings,
            num_blocks=num_res_blocks,
            # 16 bits would round the log-mel to 0.02 nats.
            out_dtype=jnp.promote_types(dtype, jnp.float32),
            **layout.coder_arguments(dtype, rngs),
        )
        # Our choice: untrained, every mel is near one quiet level, since exp of a wild log-mel overflows.
        self.conv_out.kernel = nnx.Param(INITIAL_DETAIL * self.conv_out.kernel[...])
        side = 1 << layout.haar_levels
        flat = jnp.full((1, side, side, 1), INITIAL_LOG_MEL / LOG_MEL_SCALE)
        self.conv_out.bias = nnx.Param(haar(flat, layout.haar_levels)[0, 0, 0])

    def __call__(self, quantized: jax.Array, valid_range: ValidRange | None = None, *, floor: bool = True) -> jax.Array:
        log_mel = self.layout.windows.apply(self._decode, quantized, valid_range, (1, self.layout.compression))
        return raise_to_floor(log_mel, math.log(self.floor)) if floor else log_mel

    def steps(self) -> Steps:
        """Returns the layers up to the floor, see `bandtok_jax.layers.steps`."""
        return [
            linear("post_quantization", self.post_quantization),
            *self.decoder_steps(),
            linear("inverse_haar", self._synthesise),
        ]

    def _decode(self, quantized: jax.Array, present: jax.Array | None) -> jax.Array:
        x = self.post_quantization(quantized.astype(compute_dtype(self.dtype, quantized)))
        return self._synthesise(self.decode(x, present))

    def _synthesise(self, packet: jax.Array) -> jax.Array:
        return inverse_haar(packet, self.layout.haar_levels)[..., 0] * LOG_MEL_SCALE
