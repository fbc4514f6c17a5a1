"""Quantizer with a fixed random projection and codebook (BEST-RQ, Chiu et al. 2022, arXiv 2202.01855)."""

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers.network import Buffer
from bandtok_jax.layers.precision import exact


class RandomProjectionQuantizer(nnx.Module):
    """Codes of vectors: the nearest code of the projected vector by cosine. Nothing of it is trained.

    Args:
      dim: D, width of the vectors.
      codebook_size: K.
      codebook_dim: width of the codes.
    """

    def __init__(self, dim: int, codebook_size: int, codebook_dim: int, *, rngs: nnx.Rngs):
        xavier = nnx.initializers.xavier_normal()  # of the projection, and N(0, 1) of the codebook: as in MuQ's code
        self.projection = Buffer(xavier(rngs.params(), (dim, codebook_dim)))
        self.codebook = Buffer(jax.random.normal(rngs.params(), (codebook_size, codebook_dim)))

    @exact
    def encode(self, x: jax.Array) -> jax.Array:
        """Returns the codes of vectors, computed in at least float32; `[..., D] -> int32 [..., 1]`."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        codes = self.codebook[...] / jnp.linalg.norm(self.codebook[...], axis=-1, keepdims=True)
        # The length of a projected vector does not change which code is nearest.
        return jnp.argmax(wide @ self.projection[...] @ codes.T, axis=-1).astype(jnp.int32)[..., None]
