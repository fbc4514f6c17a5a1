"""The heads of MuEncoder's second training stage, which predict from its last hidden state; encoding needs none.

Published are a linear layer of the mel (MuQ's code), one of the constant-Q transform (MERT's code), and the use of both
CTC and a transducer (MuCodec's authors). The transducer has the stateless predictor and the joiner of icefall's
recipes, our choice.

Letters: B batch, T columns, D width, L tokens, V vocabulary.
"""

from collections.abc import Collection
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.layers.linear import Linear

HEADS = ("mel", "constant_q", "ctc", "transducer")
CONTEXT = 2  # tokens that the predictor reads (icefall: pruned_transducer_stateless)


class Heads(nnx.Module):
    """Those of `HEADS` that a training asks for.

    Args:
      heads: their names.
      dim: D.
      column_mels: mel bins of all frames of a column.
      bins: bins of the constant-Q transform.
      vocabulary_size: V, the tokens of lyrics with 0, the blank.
      predictor_dim, joiner_dim: widths of the transducer.
      dtype: dtype of products; results are at least float32.
    """

    def __init__(
        self,
        heads: Collection[str],
        dim: int,
        *,
        column_mels: int,
        bins: int,
        vocabulary_size: int,
        predictor_dim: int,
        joiner_dim: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if unknown := [name for name in heads if name not in HEADS]:
            raise ValueError(f"heads has {unknown[0]!r}: choose from {', '.join(HEADS)}")
        options: dict[str, Any] = dict(bias=True, wide=True, dtype=dtype, rngs=rngs)
        sizes = {"mel": column_mels, "constant_q": bins, "ctc": vocabulary_size}
        for name, size in sizes.items():
            if name in heads:
                setattr(self, name, Linear(dim, size, **options))
        if "transducer" in heads:
            self.transducer = Transducer(dim, vocabulary_size, predictor_dim, joiner_dim, dtype=dtype, rngs=rngs)


def sharding(heads: Collection[str]) -> tuple[tuple[str, P], ...]:
    """Returns the rules for the arrays of some heads. Their outputs are few, and no axis of a mesh divides them."""
    kernels = (r"heads/.*/kernel", P(None, "fsdp"))
    return (*[kernels] * bool(heads), *[(r"heads/transducer/predictor/", P())] * ("transducer" in heads))


class Transducer(nnx.Module):
    """Predictor and joiner: log-probabilities of blanks and of given tokens after each number of tokens."""

    def __init__(
        self, dim: int, vocabulary_size: int, predictor_dim: int, joiner_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.dtype = dtype
        self.predictor = Predictor(vocabulary_size, predictor_dim, **options)
        self.state = Linear(dim, joiner_dim, bias=True, **options)
        self.tokens = Linear(predictor_dim, joiner_dim, **options)
        self.logits = Linear(joiner_dim, vocabulary_size, bias=True, wide=True, **options)

    def __call__(self, state: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the arguments of `transducer_loss`, `[B, T, L + 1]` and `[B, T, L]`; `[B, T, D]`, int `[B, L]` ->.

        The logits `[B, L + 1, V]` of one column at a time are in memory, and are computed again for the gradient.
        """
        tokens = tokens.astype(jnp.int32)
        history = self.tokens(self.predictor(tokens))

        @jax.checkpoint
        def column(state: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = self.logits(jnp.tanh(state[:, None] + history))
            total = jax.nn.logsumexp(logits, axis=-1)
            # Compared, not gathered: the gradient of a gather is a scatter.
            chosen = jnp.where(tokens[..., None] == jnp.arange(logits.shape[-1]), logits[:, :-1], 0).sum(-1)
            return logits[..., 0] - total, chosen - total[:, :-1]

        blank, label = jax.lax.map(column, jnp.swapaxes(self.state(state), 0, 1))
        return jnp.swapaxes(blank, 0, 1), jnp.swapaxes(label, 0, 1)


class Predictor(nnx.Module):
    """A stateless predictor: the last `CONTEXT` tokens, embedded, by a depthwise convolution (Ghodsi 2020)."""

    def __init__(self, vocabulary_size: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (vocabulary_size, dim)))
        self.filters = nnx.Param(jax.random.normal(rngs.params(), (CONTEXT, dim)) / CONTEXT**0.5)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns a vector after each number of tokens; int `[B, L] -> [B, L + 1, P]`. Before the first are blanks."""
        history = jnp.pad(tokens, ((0, 0), (CONTEXT, 0)))
        x = self.embedding[...].astype(self.dtype)[history]
        filters = self.filters[...].astype(self.dtype)
        length = tokens.shape[1] + 1
        return jax.nn.relu(sum(x[:, i : i + length] * filters[i] for i in range(CONTEXT)))
