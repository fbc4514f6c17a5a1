"""The variational autoencoder of log-mels of AudioLDM (Liu et al. 2023, arXiv 2301.12503), in its 48 kHz size.

The layout is that of the published file (MuCodec, tools/get_melvaehifigan48k.py), so that its weights fit. Norms and
attention see all positions of an array, so a latent depends on the length of the array. Generative models of the
latents use arrays of one fixed length.

Letters: B batch, T mel frames, M mel bins, Z channels of a latent. With the factor 8 of four resolutions there are
T / 8 times M / 8 latents.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.layers import spatial_coders
from bandtok_jax.layers.convolution import ValidRange, frames_inside, scale_range
from bandtok_jax.layers.convolution_2d import patchify, unpatchify
from bandtok_jax.layers.network import Buffer
from bandtok_jax.layers.precision import compute_dtype
from bandtok_jax.layers.spatial_coders import SpatialDecoder, SpatialEncoder

LOG_VARIANCE_LIMITS = (-30.0, 20.0)  # published
# Our choice: untrained, every mel is near one quiet level.
INITIAL_LOG_MEL, INITIAL_DETAIL = -5.0, 0.1


class MelVAE(nnx.Module):
    """Encoder, normal distributions of latents, and decoder.

    Latents are scaled to about unit variance where they leave or enter the network (`sample`, `decode`).

    Args:
      mels: M, mel bins of the spectrogram, a multiple of the factor.
      patch: side of the square patches that become the first channels; 1 is published.
      channels: channels of each resolution, from fine to coarse; every further entry halves both axes.
      num_res_blocks: residual blocks at each resolution; the decoder has one more.
      latent_channels: Z.
      attention_levels: resolutions with attention after every residual block, counted from the finest. The published
        network has none of them, only attention between the blocks in the middle, which is always there.
      activation: function of `jax.nn`.
      norm_groups: groups of the group norms.
      dtype: dtype of the computation; distributions and log-mels are at least float32.
    """

    role = "autoencoder"
    LAYER_COUNTS = ("num_res_blocks",)
    OPTIONAL_SIZES = ("num_res_blocks", "attention_levels")
    SHARDING = (*spatial_coders.SHARDING, (r"(pre|post)_latent/kernel|scale", P()))

    def __init__(
        self,
        *,
        mels: int = 256,
        patch: int = 1,
        channels: Sequence[int] = (128, 256, 512, 1024),
        num_res_blocks: int = 2,
        latent_channels: int = 16,
        attention_levels: Sequence[int] = (),
        activation: str = "silu",
        norm_groups: int = 32,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.frames_per_column = patch * 2 ** (len(channels) - 1)  # mel frames, and mel bins, of a latent
        if mels % self.frames_per_column:
            raise ValueError(
                f"mels is {mels}: set it to a multiple of {self.frames_per_column}, of patch {patch} and "
                f"{len(channels)} channels"
            )
        shared: dict[str, Any] = dict(
            patch=patch,
            channels=tuple(channels),
            num_res_blocks=num_res_blocks,
            latent_channels=latent_channels,
            attention_levels=tuple(attention_levels),
            activation=activation,
            norm_groups=norm_groups,
            dtype=dtype,
            rngs=rngs,
        )
        self.mels, self.latent_channels = mels, latent_channels
        self.encoder = MelVAEEncoder(**shared)
        self.decoder = MelVAEDecoder(**shared)

    @property
    def scale(self) -> jax.Array:
        """Factor of the latents that leave the network, a buffer of the decoder; about 1 over their deviation."""
        return self.decoder.scale[...]

    def encode(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> tuple[jax.Array, jax.Array]:
        """Returns mean and log variance of the latents before the scale; `[B, T, M]` -> `[B, T/8, M/8, Z]` twice.

        Args:
          log_mel: natural-log mel; T must be a multiple of `frames_per_column`.
          valid_range: the columns of latents in which the file lies; by default the array is the file.
        """
        if log_mel.shape[1] % self.frames_per_column or log_mel.shape[2] != self.mels:
            raise ValueError(
                f"log_mel is {log_mel.shape}; it must be [B, T, {self.mels}], T a multiple of {self.frames_per_column}"
            )
        return self.encoder(log_mel, valid_range)

    def sample(self, mean: jax.Array, log_variance: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """Returns scaled latents `[B, T/8, M/8, Z]`.

        Args:
          mean, log_variance: result of `encode`.
          noise: standard normal numbers `[B, T/8, M/8, Z]`; without them the latents are the means.
        """
        latents = mean if noise is None else mean + jnp.exp(0.5 * log_variance) * noise
        return self.scale * latents

    def decode(self, latents: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the log-mel of scaled latents; `[B, T/8, M/8, Z] -> [B, T, M]`. `valid_range` is as for `encode`."""
        return self.decoder(latents, valid_range)

    def __call__(
        self, log_mel: jax.Array, noise: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns the reconstruction `[B, T, M]`, mean and log variance, and the scaled latents."""
        mean, log_variance = self.encode(log_mel)
        latents = self.sample(mean, log_variance, noise)
        return self.decode(latents), mean, log_variance, latents


class MelVAEEncoder(SpatialEncoder):
    """Natural-log mel `[B, T, M]` to mean and log variance `[B, T/8, M/8, Z]`; arguments as for `MelVAE`."""

    def __init__(
        self,
        *,
        patch: int,
        channels: Sequence[int],
        num_res_blocks: int,
        latent_channels: int,
        attention_levels: Sequence[int] = (),
        activation: str = "silu",
        norm_groups: int = 32,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch, self.factor, self.dtype = patch, 2 ** (len(channels) - 1), dtype
        super().__init__(
            patch**2,
            2 * latent_channels,
            stem_channels=channels[0],
            channels=channels,
            halvings=len(channels) - 1,
            num_blocks=num_res_blocks,
            attention_levels=attention_levels,
            activation=activation,
            groups=norm_groups,
            dtype=dtype,
            rngs=rngs,
        )
        wide = jnp.promote_types(dtype, jnp.float32)
        self.pre_latent = nnx.Linear(2 * latent_channels, 2 * latent_channels, dtype=wide, rngs=rngs)

    def __call__(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> tuple[jax.Array, jax.Array]:
        x = patchify(log_mel[..., None].astype(compute_dtype(self.dtype, log_mel)), self.patch)
        x = self.encode(x, _present(x.shape[1], valid_range, self.factor))
        mean, log_variance = jnp.split(self.pre_latent(x), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE_LIMITS)


class MelVAEDecoder(SpatialDecoder):
    """Scaled latents `[B, T/8, M/8, Z]` to natural-log mel `[B, T, M]`; arguments as for `MelVAE`."""

    def __init__(
        self,
        *,
        patch: int,
        channels: Sequence[int],
        num_res_blocks: int,
        latent_channels: int,
        attention_levels: Sequence[int] = (),
        activation: str = "silu",
        norm_groups: int = 32,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch, self.dtype = patch, dtype
        self.scale = Buffer(jnp.ones(()))
        self.post_latent = nnx.Linear(latent_channels, latent_channels, dtype=dtype, rngs=rngs)
        super().__init__(
            latent_channels,
            patch**2,
            channels=channels,
            doublings=len(channels) - 1,
            num_blocks=num_res_blocks + 1,
            attention_levels=attention_levels,
            activation=activation,
            groups=norm_groups,
            dtype=dtype,
            # 16 bits would round the log-mel to 0.03 nats.
            out_dtype=jnp.promote_types(dtype, jnp.float32),
            rngs=rngs,
        )
        self.conv_out.kernel = nnx.Param(INITIAL_DETAIL * self.conv_out.kernel[...])
        self.conv_out.bias = nnx.Param(jnp.full(patch**2, INITIAL_LOG_MEL, jnp.float32))

    def __call__(self, latents: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        present = _present(latents.shape[1], valid_range)
        x = (latents / self.scale[...]).astype(compute_dtype(self.dtype, latents))
        return unpatchify(self.decode(self.post_latent(x), present), self.patch)[..., 0]


def _present(frames: int, valid_range: ValidRange | None, rate: int = 1) -> jax.Array | None:
    """Returns the frames in which the file lies, bool `[1, T]`, for a range counted in `rate` frames."""
    scaled = scale_range(valid_range, rate)
    return None if scaled is None else frames_inside(frames, scaled)[None]
