"""The two-dimensional Haar wavelet packet of spectrograms, and its exact inverse.

One level is the patcher of the Cosmos image tokenizer (github.com/NVIDIA/Cosmos-Tokenizer): two-tap filters along both
axes, with a factor of 1/2 that turns the low-low channel into the mean of its cell. Further levels are our addition.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.layers.convolution_2d import patchify, unpatchify

LOW, HIGH = (1.0, 1.0), (1.0, -1.0)
# Rows: low-low, low-high, high-low, high-high, the filter over time first. Columns: the cell as `patchify` orders it.
_ANALYSIS = np.stack([np.outer(time, mel).reshape(-1) for time in (LOW, HIGH) for mel in (LOW, HIGH)]) / 4
_SYNTHESIS = np.linalg.inv(_ANALYSIS)


def haar(image: jax.Array, levels: int = 1) -> jax.Array:
    """Returns the wavelet packet; `[B, T, M, C] -> [B, T / 2^levels, M / 2^levels, C * 4^levels]`.

    Each level splits every channel into four, in the order low-low, low-high, high-low, high-high of time and mel.
    """
    for level in range(levels):
        channels = image.shape[-1]
        cells = patchify(image, 2)  # [B, T / 2, M / 2, 4 * C], the place in the cell first
        cells = cells.reshape(*cells.shape[:-1], 4, channels)
        filters = jnp.asarray(_scale(level) * _ANALYSIS, image.dtype)
        image = jnp.einsum("...pc,fp->...fc", cells, filters, precision="highest")
        image = image.reshape(*image.shape[:-2], 4 * channels)
    return image


def inverse_haar(packet: jax.Array, levels: int = 1) -> jax.Array:
    """Inverts `haar`; `[B, T, M, C * 4^levels] -> [B, T * 2^levels, M * 2^levels, C]`."""
    for level in reversed(range(levels)):
        channels = packet.shape[-1] // 4
        filtered = packet.reshape(*packet.shape[:-1], 4, channels)
        filters = jnp.asarray(_SYNTHESIS / _scale(level), packet.dtype)
        cells = jnp.einsum("...fc,pf->...pc", filtered, filters, precision="highest")
        packet = unpatchify(cells.reshape(*cells.shape[:-2], 4 * channels), 2)
    return packet


def _scale(level: int) -> int:
    """Returns the factor of a level beside that of the first: orthonormal, so that details keep their size.

    Only one level is published. With its scale at all levels a change of one coefficient would change 4^levels pixels
    by as much.
    """
    return 1 if level == 0 else 2
