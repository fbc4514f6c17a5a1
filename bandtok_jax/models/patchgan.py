"""Multi-scale PatchGAN: the critics of a mel picture.

Isola et al. 2017 (arXiv 1611.07004) for the patches, Wang et al. 2018 (pix2pixHD, arXiv 1711.11585) for the scales. No
batch normalisation: a critic's word on one picture must not depend on its neighbours in the batch. Groups of channels
may be normalised over each picture instead (Wu and He 2018, arXiv 1803.08494), in all layers but the first and last.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers.convolution_2d import PictureConvolution
from bandtok_jax.models.bandtok import LOG_MEL_CENTRE, LOG_MEL_SCALE

GROUPS = 16  # of channels, at most; our choice


class PatchDiscriminator(nnx.Module):
    """4x4 convolutions: `width`, 2 and 4 times that at stride 2, 8 times and the verdict at stride 1."""

    def __init__(self, width: int, *, normalisation: str, dtype=jnp.float32, rngs):
        sizes, strides = (1, width, 2 * width, 4 * width, 8 * width, 1), (2, 2, 2, 1, 1)
        wide = jnp.promote_types(dtype, jnp.float32)
        self.layers = nnx.List(
            [
                # The last layer makes logits, in float32 or wider.
                PictureConvolution(i, o, (4, 4), strides=s, padding="SAME", dtype=dtype if o > 1 else wide, rngs=rngs)
                for i, o, s in zip(sizes[:-1], sizes[1:], strides)
            ]
        )
        self.norms = nnx.List(
            [
                nnx.GroupNorm(channels, num_groups=math.gcd(channels, GROUPS), dtype=dtype, rngs=rngs)
                for channels in sizes[2:-1]
                if normalisation == "group"
            ]
        )

    def __call__(self, picture: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        features = []
        for number, layer in enumerate(self.layers[:-1]):
            picture = layer(picture)
            if number and len(self.norms):
                picture = self.norms[number - 1](picture)
            picture = jax.nn.leaky_relu(picture, 0.2)
            features.append(picture)
        return self.layers[-1](picture)[..., 0], features


class MultiScalePatchGAN(nnx.Module):
    """The same critic, with weights of its own, at full, half, quarter, ... resolution.

    Args:
      channels: of the first layer (64 in pix2pixHD).
      num_scales: how many resolutions (3 in pix2pixHD).
      normalisation: "none" or "group".
    """

    def __init__(
        self, *, channels: int = 64, num_scales: int = 3, normalisation: str = "none", dtype=jnp.float32, rngs: nnx.Rngs
    ):
        if normalisation not in ("none", "group"):
            raise ValueError(f'normalisation is "{normalisation}": set it to "none" or "group"')
        options = dict(normalisation=normalisation, dtype=dtype, rngs=rngs)
        self.discriminators = nnx.List([PatchDiscriminator(channels, **options) for _ in range(num_scales)])

    def __call__(self, log_mel: jax.Array) -> tuple[list[jax.Array], list[list[jax.Array]]]:
        """`[B, T, M]` to one map of verdicts a scale and its list of features."""
        picture = ((log_mel - LOG_MEL_CENTRE) / LOG_MEL_SCALE)[..., None]
        logits, features = [], []
        for scale, discriminator in enumerate(self.discriminators):
            if scale:  # 3x3 mean at stride 2, as pix2pixHD
                picture = nnx.avg_pool(
                    picture, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), count_include_pad=False
                )
            verdict, maps = discriminator(picture)
            logits.append(verdict)
            features.append(maps)
        return logits, features
