"""Multi-scale PatchGAN: the discriminators of a log-mel spectrogram.

Isola et al. 2017 (arXiv 1611.07004) for the patches, Wang et al. 2018 (pix2pixHD, arXiv 1711.11585) for the scales. No
batch normalisation: the logits of one example must not depend on the others in the batch. Groups of channels may be
normalised over each example instead (Wu and He 2018, arXiv 1803.08494), in all layers but the first and last.
"""

import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.layers.convolution_2d import Conv2d
from bandtok_jax.models.bandtok import LOG_MEL_CENTRE, LOG_MEL_SCALE

GROUPS = 16  # of channels, at most; our choice


class PatchDiscriminator(nnx.Module):
    """4x4 convolutions of `channels`, 2 and 4 times as many at stride 2, then 8 times as many and the logits."""

    def __init__(self, channels: int, *, normalisation: str, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        sizes, strides = (1, channels, 2 * channels, 4 * channels, 8 * channels, 1), (2, 2, 2, 1, 1)
        wide = jnp.promote_types(dtype, jnp.float32)
        self.layers = nnx.List(
            [
                # The last layer makes logits, in float32 or wider.
                Conv2d(i, o, (4, 4), strides=s, padding="SAME", dtype=dtype if o > 1 else wide, rngs=rngs)
                for i, o, s in zip(sizes[:-1], sizes[1:], strides)
            ]
        )
        self.norms = nnx.List(
            [
                nnx.GroupNorm(size, num_groups=math.gcd(size, GROUPS), dtype=dtype, rngs=rngs)
                for size in sizes[2:-1]
                if normalisation == "group"
            ]
        )

    def __call__(self, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Returns logits, one for each patch, and the activations of all other layers; `[B, T, M, 1]`."""
        features = []
        for number, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            if number and len(self.norms):
                x = self.norms[number - 1](x)
            x = jax.nn.leaky_relu(x, 0.2)
            features.append(x)
        return self.layers[-1](x)[..., 0], features


class MultiScalePatchGAN(nnx.Module):
    """A `PatchDiscriminator` with weights of its own at full, half, quarter, ... resolution.

    Args:
      channels: channels of the first layer (64 in pix2pixHD).
      num_scales: resolutions (3 in pix2pixHD).
      normalisation: "none" or "group".
    """

    SHARDING = (
        (r"discriminators/\d+/layers/[1-3]/kernel", P(None, None, "fsdp", "tensor")),
        (r"layers/[04]/kernel|bias|scale", P()),
    )

    loss_weights = None  # the scales count alike

    def __init__(
        self,
        *,
        channels: int = 64,
        num_scales: int = 3,
        normalisation: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if normalisation not in ("none", "group"):
            raise ValueError(f'normalisation is "{normalisation}": set it to "none" or "group"')
        options: dict[str, Any] = dict(normalisation=normalisation, dtype=dtype, rngs=rngs)
        self.discriminators = nnx.List([PatchDiscriminator(channels, **options) for _ in range(num_scales)])

    def __call__(self, log_mel: jax.Array) -> tuple[list[jax.Array], list[list[jax.Array]]]:
        """Returns for each scale a map of logits and the list of its activations; `[B, T, M]`."""
        x = ((log_mel - LOG_MEL_CENTRE) / LOG_MEL_SCALE)[..., None]
        logits, features = [], []
        for scale, discriminator in enumerate(self.discriminators):
            if scale:  # 3x3 mean at stride 2, as pix2pixHD
                # Flax declares no type of `padding`, and checkers infer `str` from its default.
                padding: Any = ((1, 1), (1, 1))
                x = nnx.avg_pool(x, (3, 3), strides=(2, 2), padding=padding, count_include_pad=False)
            scale_logits, scale_features = discriminator(x)
            logits.append(scale_logits)
            features.append(scale_features)
        return logits, features
