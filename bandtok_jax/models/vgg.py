"""Features of a log-mel by a network like VGG-19 (Simonyan and Zisserman 2015, arXiv 1409.1556), for losses.

MelTok (arXiv 2510.01903) compares mel spectrograms by the convolutions of a VGG-19 that classifies photographs.
"""

from collections.abc import Sequence

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.convolution_2d import Conv2d

# Channels of the convolutions of each block; a 2x2 max pool separates the blocks.
VGG19_WIDTHS = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)
# MelTok's code: the input is (log-mel / 5 + 1) / 2, without ImageNet's mean and deviation.
LOG_MEL_SCALE = 5.0


class VGGFeatures(nnx.Module):
    """Blocks of 3x3 convolutions with ReLU, and 2x2 max pools between the blocks.

    A log-mel has one channel. The three equal channels of MelTok's input are one channel with the sum of the kernels.

    Args:
      widths: channels of the convolutions of each block.
      dtype: dtype of the computation.
    """

    def __init__(
        self, widths: Sequence[Sequence[int]] = VGG19_WIDTHS, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        channels, blocks = 1, []
        for block_widths in widths:
            block = []
            for width in block_widths:
                he = nnx.initializers.he_normal()
                block.append(Conv2d(channels, width, (3, 3), padding="SAME", kernel_init=he, dtype=dtype, rngs=rngs))
                channels = width
            blocks.append(nnx.List(block))
        self.blocks = nnx.List(blocks)

    def __call__(self, log_mel: jax.Array) -> list[jax.Array]:
        """Returns the output of each convolution before its ReLU, `[B, T / 2^n, M / 2^n, C]` after n pools.

        Args:
          log_mel: `[B, T, M]` in nats.

        Raises:
          ValueError: there are fewer frames or bins than the pools need.
        """
        least = 2 ** (len(self.blocks) - 1)
        if min(log_mel.shape[1:]) < least:
            raise ValueError(
                f"perceptual features of {log_mel.shape[1]} frames of {log_mel.shape[2]} mel bins: they need at least "
                f"{least} of each; raise data.clip_samples or mel.mels"
            )
        x = ((log_mel / LOG_MEL_SCALE + 1) / 2)[..., None]
        features = []
        for number, block in enumerate(self.blocks):
            if number:
                x = _max_pool(x)
            for convolution in block:
                x = convolution(x)
                features.append(x)
                x = jax.nn.relu(x)
        return features


def _max_pool(x: jax.Array) -> jax.Array:
    """Returns the maxima of 2x2 positions, `[B, T, M, C] -> [B, T // 2, M // 2, C]`; an odd last position is left out.

    The gradient of a reshape and a maximum is several times faster on a CPU than that of a pooling window.
    """
    B, T, M, C = x.shape
    return x[:, : T // 2 * 2, : M // 2 * 2].reshape(B, T // 2, 2, M // 2, 2, C).max((2, 4))
