"""MuEncoder, the encoder of MuCodec (arXiv 2409.13216): a Conformer over log-mels, trained by masked prediction.

The layout is that of MuQ (github.com/tencent-ailab/MuQ). Two residual blocks of 2-D convolutions halve time and
frequency twice, so a column has four mel frames, 25 columns a second at 24 kHz. Conformer blocks follow. MuCodec
quantizes the hidden state of a middle layer.

The published encoder also drops attention weights in training. This one does not, since fused kernels cannot.

Letters: B batch, T columns, M mel bins, C channels, D width, K codes.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.audio.mel_bands import MUENCODER, MelDefinition
from bandtok_jax.layers.batch_norm import BatchNorm
from bandtok_jax.layers.conformer import DROPOUTS, ConformerBlock, layer_norm
from bandtok_jax.layers.convolution import ValidRange, mask_outside, scale_range
from bandtok_jax.layers.convolution_2d import Conv2d
from bandtok_jax.layers.frozen import freeze
from bandtok_jax.layers.linear import Linear
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.precision import compute_dtype, exact
from bandtok_jax.layers.random_projection import RandomProjectionQuantizer
from bandtok_jax.layers.residual_vector_quantization import ResidualVectorQuantizer
from bandtok_jax.layers.rope import rope_angles
from bandtok_jax.layers.transformer import dropout
from bandtok_jax.models import muencoder_mel
from bandtok_jax.models.mel_rvq import target_quantizer
from bandtok_jax.models.muencoder_heads import Heads
from bandtok_jax.models.muencoder_mel import FRAMES_PER_COLUMN

TARGETS = ("random_projection", "mel_rvq")


class MuEncoder(nnx.Module):
    """Hidden states of a log-mel, logits of its codes, and the codes: the targets of masked prediction.

    Hidden state 0 is the input of the first block, hidden state n the output of block n, and the last one has passed
    the final layer norm, too.

    Args:
      mels: M, a multiple of 4.
      stem_channels: channels of the convolutions.
      dim: D.
      intermediate_dim: width inside the feed-forward branches.
      num_heads: heads of attention.
      num_layers: number of blocks.
      kernel_size: columns of the depthwise convolutions, odd.
      layer: number of the block whose output is the result of `encode`.
      dropout: fraction that is set to zero in training, of the input of the blocks and of their branches.
      targets: quantizer of the mel whose codes are predicted, "random_projection", which is never trained, or
        "mel_rvq", a frozen copy of that of a trained `MelRVQ`.
      target_rows: F, codes that are predicted for each column; 1 for a random projection.
      codebook_size: K, the number of codes of a row. With 0 there are neither codes nor logits nor the final norm: the
        encoder in a tokenizer, which has only its first `layer` blocks.
      codebook_dim: width of a code.
      heads: names of the heads of the second training stage, see `bandtok_jax.models.muencoder_heads`.
      constant_q_bins, vocabulary_size, predictor_dim, joiner_dim: their sizes.
      depthwise: see `bandtok_jax.layers.convolution.DepthwiseConvolution`.
      attention: kernel of attention, see `bandtok_jax.layers.attention`.
      remat: compute the activations of the blocks again in the backward pass instead of keeping them.
      mel: definition of the log-mel.
      dtype: dtype of products and convolutions; norms, logits and hidden states are at least float32.

    Raises:
      ValueError: sizes that do not fit together.
    """

    role = "encoder"
    LAYER_COUNTS = ("num_layers",)
    OPTIONAL_SIZES = ("layer",)
    OPTIONAL_ARRAYS = r"^heads/"  # of the second stage of the training
    SHARDING = (
        (r"stem/.*conv_\w+/kernel", P(None, None, "fsdp", "tensor")),
        (r"blocks/.*(query_key|value_gate)/kernel", P(None, "tensor", "fsdp")),
        (r"(blocks/.*(up|value)|stem/projection|head)/kernel", P("tensor", "fsdp")),
        (r"blocks/.*(down|out)/kernel", P("fsdp", "tensor")),
        (r"depthwise/kernel|quantizer/", P()),
        (r"bias|scale|mean|variance", P()),
    )

    def __init__(
        self,
        *,
        mels: int = 128,
        stem_channels: int = 512,
        dim: int = 1024,
        intermediate_dim: int = 4096,
        num_heads: int = 16,
        num_layers: int = 12,
        kernel_size: int = 31,
        layer: int = 6,
        dropout: float = 0.1,
        targets: str = "random_projection",
        target_rows: int = 1,
        codebook_size: int = 4096,
        codebook_dim: int = 16,
        heads: Sequence[str] = (),
        constant_q_bins: int = 84,
        vocabulary_size: int = 256,
        predictor_dim: int = 512,
        joiner_dim: int = 512,
        depthwise: str = "long",
        attention: str = "auto",
        remat: bool = False,
        mel: MelDefinition = MUENCODER,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 0 <= layer <= num_layers:
            raise ValueError(f"layer is {layer} of {num_layers} layers: set it to 0 to {num_layers}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}: set it to at least 0 and below 1")
        if mels % FRAMES_PER_COLUMN:
            raise ValueError(f"mels is {mels}: set it to a multiple of {FRAMES_PER_COLUMN}")
        self.mels, self.dim, self.num_heads, self.num_layers, self.layer = mels, dim, num_heads, num_layers, layer
        self.dropout, self.remat, self.dtype = dropout, remat, dtype
        self.target_rows, self._power = target_rows, mel.power
        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.stem = Stem(mels, stem_channels, dim, **options)
        self.blocks = nnx.List(
            ConformerBlock(
                dim, num_heads, intermediate_dim, kernel_size=kernel_size, depthwise=depthwise, kernel=attention,
                **options,
            )
            for _ in range(num_layers)
        )  # fmt: skip
        if codebook_size:
            self.norm = layer_norm(dim, **options)
            self.head = Linear(dim, target_rows * codebook_size, bias=True, wide=True, **options)
            self.quantizer = _target_quantizer(targets, mels, target_rows, codebook_size, codebook_dim, rngs)
        if heads:
            self.heads = Heads(
                heads,
                dim,
                column_mels=FRAMES_PER_COLUMN * mels,
                bins=constant_q_bins,
                vocabulary_size=vocabulary_size,
                predictor_dim=predictor_dim,
                joiner_dim=joiner_dim,
                **options,
            )

    @property
    def frames_per_column(self) -> int:
        """Mel frames of a column."""
        return FRAMES_PER_COLUMN

    def hidden_states(
        self, log_mel: jax.Array, valid_range: ValidRange | None = None, layers: Sequence[int] | None = None
    ) -> list[jax.Array]:
        """Returns hidden states `[B, T, D]`, those of `layers` or all.

        Args:
          log_mel: `[B, 4 * T, M]`.
          valid_range: the columns in which the file lies; by default the array is the file. Beyond its ends
            convolutions see zeros and attention sees nothing.
          layers: numbers of hidden states; no block after the last of them is computed.
        """
        layers = range(self.num_layers + 1) if layers is None else layers
        states, _ = self._run(log_mel, max(layers), valid_range)
        if len(states) == self.num_layers + 1 and hasattr(self, "norm"):
            states[-1] = self.norm(states[-1]).astype(states[-1].dtype)
        return [states[layer] for layer in layers]

    @exact
    def encode(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the output of block `layer` without the final norm, `[B, T, D]`, for the arguments see above."""
        return self._run(log_mel, self.layer, valid_range)[0][-1]

    def training_state(self, log_mel: jax.Array, keys: jax.Array) -> tuple[jax.Array, Tree]:
        """Returns the last hidden state `[B, T, D]`, and the sums of all `BatchNorm`s.

        Args:
          log_mel: `[B, 4 * T, M]`.
          keys: random keys `[B]` for dropout.
        """
        states, sums = self._run(log_mel, self.num_layers, keys=keys, training=True)
        return self.norm(states[-1]).astype(states[-1].dtype), sums

    def logits(self, state: jax.Array) -> jax.Array:
        """Returns the logits of the codes, of the last hidden state; `[B, T, D] -> [B, T, F, K]`."""
        return self.head(state).reshape(*state.shape[:2], self.target_rows, -1)

    def predict(self, head: str, state: jax.Array, *arguments: jax.Array) -> Any:
        """Returns the result of a head of the second stage for the last hidden state `[B, T, D]`."""
        return getattr(self.heads, head)(state, *arguments)

    def stack(self, log_mel: jax.Array) -> jax.Array:
        """Returns the normalised mel with the frames of each column one after another; `-> [B, T, 4 * M]`."""
        return muencoder_mel.stack(log_mel, self.mels, self._power)

    @exact
    def targets(self, log_mel: jax.Array) -> jax.Array:
        """Returns the codes that masked prediction predicts; `[B, 4 * T, M] -> int32 [B, T, F]`."""
        return self.quantizer.encode(self.stack(log_mel))

    def _run(
        self,
        log_mel: jax.Array,
        num_blocks: int,
        valid_range: ValidRange | None = None,
        keys: jax.Array | None = None,
        training: bool = False,
    ) -> tuple[list[jax.Array], Tree]:
        """Returns the input of the first block and the outputs of `num_blocks` blocks, and sums of the `BatchNorm`s."""

        def drop(x: jax.Array, number: int) -> jax.Array:
            if keys is None or not self.dropout:
                return x
            return dropout(x, jax.vmap(jax.random.fold_in, (0, None))(keys, number), self.dropout)

        x, stem_sums = self.stem(muencoder_mel.normalise(log_mel, self.mels, self._power), valid_range, training)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        states, block_sums = [drop(x.astype(wide), 0)], {}
        angles = rope_angles(jnp.arange(x.shape[1]), self.dim // self.num_heads // 2)
        for number, block in enumerate(list(self.blocks)[:num_blocks]):
            graph, state = nnx.split(block)

            def run(state: nnx.State, x: jax.Array, graph: Any = graph, number: int = number) -> tuple:
                return nnx.merge(graph, state)(
                    x, angles, valid_range=valid_range, training=training,
                    drop=lambda branch, which: drop(branch, 1 + DROPOUTS * number + which),
                )  # fmt: skip

            x, block_sums[str(number)] = (jax.checkpoint(run) if self.remat else run)(state, states[-1])
            states.append(x)
        return states, {"stem": stem_sums, "blocks": block_sums} if training else {}


def _target_quantizer(
    targets: str, mels: int, rows: int, codebook_size: int, codebook_dim: int, rngs: nnx.Rngs
) -> RandomProjectionQuantizer | ResidualVectorQuantizer:
    """Returns the frozen quantizer of the targets, see `MuEncoder`."""
    if targets not in TARGETS:
        raise ValueError(f"targets is {targets!r}: set it to one of {', '.join(TARGETS)}")
    if targets == "mel_rvq":
        quantizer = target_quantizer(mels, rows, codebook_size, codebook_dim, rngs=rngs)
        freeze(quantizer)
        return quantizer
    if rows != 1:
        raise ValueError(f"target_rows is {rows}: a random projection has one code, so set it to 1")
    return RandomProjectionQuantizer(FRAMES_PER_COLUMN * mels, codebook_size, codebook_dim, rngs=rngs)


class Stem(nnx.Module):
    """Two residual blocks and a linear layer; normalised mels `[B, 4 * T, M] -> [B, T, D]`."""

    def __init__(self, mels: int, channels: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.dtype = dtype
        self.blocks = nnx.List([HalvingBlock(1, channels, **options), HalvingBlock(channels, channels, **options)])
        self.projection = Linear(channels * mels // FRAMES_PER_COLUMN, dim, bias=True, **options)

    def __call__(self, mel: jax.Array, valid_range: ValidRange | None, training: bool) -> tuple[jax.Array, Tree]:
        """Returns the input of the Conformer, and in training the sums of each `BatchNorm`."""
        x = mel.astype(compute_dtype(self.dtype, mel))[..., None]
        sums = {}
        for number, block in enumerate(self.blocks):
            rate = FRAMES_PER_COLUMN // 2**number
            x, sums[str(number)] = block(mask_outside(x, scale_range(valid_range, rate)), valid_range, rate, training)
        return self.projection(x.reshape(*x.shape[:2], -1)), {"blocks": sums}


class HalvingBlock(nnx.Module):
    """Two 3x3 convolutions, the first of stride 2, with batch norms, plus a shortcut of stride 2, then ReLU."""

    def __init__(self, channels: int, out_channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        options: dict[str, Any] = dict(padding=1, dtype=dtype, rngs=rngs)
        self.conv_in = Conv2d(channels, out_channels, (3, 3), strides=2, **options)
        self.norm_in = BatchNorm(out_channels, rngs=rngs)
        self.conv_out = Conv2d(out_channels, out_channels, (3, 3), **options)
        self.norm_out = BatchNorm(out_channels, rngs=rngs)
        self.conv_shortcut = Conv2d(channels, out_channels, (3, 3), strides=2, **options)
        self.norm_shortcut = BatchNorm(out_channels, rngs=rngs)

    def __call__(
        self, x: jax.Array, valid_range: ValidRange | None, rate: int, training: bool
    ) -> tuple[jax.Array, Tree]:
        """Returns `[B, T / 2, M / 2, C]` of `[B, T, M, C]` with zeros outside of the file; `rate` frames a column."""
        y, in_sums = self.norm_in(self.conv_in(x), training)
        y = mask_outside(jax.nn.relu(y), scale_range(valid_range, rate // 2))
        y, out_sums = self.norm_out(self.conv_out(y), training)
        shortcut, shortcut_sums = self.norm_shortcut(self.conv_shortcut(x), training)
        return jax.nn.relu(y + shortcut), {"norm_in": in_sums, "norm_out": out_sums, "norm_shortcut": shortcut_sums}
