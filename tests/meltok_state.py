"""State dicts of MelTok's published networks: names and shapes for any size, and random weights.

The names and shapes are those of the checkpoints of both stages (github.com/jingyi49/MelTok).
"""

import dataclasses
import math

import numpy as np

STAGE1_DECODER = ("post_quant_conv", "decoder")
STAGE2_DECODER = ("feature_extractor.mel_decoder.0", "feature_extractor.mel_decoder.1")
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of both stages; the defaults are the published ones."""

    haar_levels: int = 1
    stem: int = 128
    widths: tuple[int, ...] = (256, 512, 512)
    blocks: int = 2
    resamplings: int = 2  # 3 for a compression of 16
    attention: tuple[int, ...] = (2,)
    latent: int = 256
    code_dim: int = 64
    codes: int = 8192
    mels: int = 96
    dim: int = 512
    intermediate: int = 1536
    layers: int = 8
    fft: int = 1024


def stage1_shapes(sizes: Sizes) -> Shapes:
    """Returns the shapes of the state dict of a tokenizer."""
    shapes: Shapes = {}
    widths = sizes.widths
    _layer(shapes, "encoder.conv_in", sizes.stem, 4**sizes.haar_levels, 3, 3)
    width = sizes.stem
    for level, out in enumerate(widths):
        width = _level(shapes, f"encoder.down.{level}", width, out, sizes.blocks, level in sizes.attention)
        if level < sizes.resamplings:
            _layer(shapes, f"encoder.down.{level}.downsample.conv", out, out, 3, 3)
    _middle(shapes, "encoder", width)
    _layer(shapes, "encoder.conv_out", sizes.latent, width, 3, 3)
    _layer(shapes, "quant_conv", sizes.code_dim, sizes.latent, 1, 1)
    shapes["quantizer.embedding.weight"] = (sizes.codes, sizes.code_dim)
    return shapes | _decoder_shapes(sizes, *STAGE1_DECODER)


def stage2_shapes(sizes: Sizes) -> Shapes:
    """Returns the shapes of the decoder's copy and the vocoder in a checkpoint of the second stage."""
    shapes = _decoder_shapes(sizes, *STAGE2_DECODER)
    _layer(shapes, "backbone.embed", sizes.dim, sizes.mels, 7)
    _layer(shapes, "backbone.norm", sizes.dim)
    for b in range(sizes.layers):
        shapes[f"backbone.convnext.{b}.gamma"] = (sizes.dim,)
        _layer(shapes, f"backbone.convnext.{b}.dwconv", sizes.dim, 1, 7)
        _layer(shapes, f"backbone.convnext.{b}.norm", sizes.dim)
        _layer(shapes, f"backbone.convnext.{b}.pwconv1", sizes.intermediate, sizes.dim)
        _layer(shapes, f"backbone.convnext.{b}.pwconv2", sizes.dim, sizes.intermediate)
    _layer(shapes, "backbone.final_layer_norm", sizes.dim)
    _layer(shapes, "head.out", sizes.fft + 2, sizes.dim)
    return shapes


def discriminator_shapes(channels: int = 32) -> Shapes:
    """Returns the shapes of the discriminators of a checkpoint of the second stage, with the vectors of their norms.

    Args:
      channels: width of the first layer, 32 as published.
    """
    shapes: Shapes = {}
    for p in range(5):
        width = 1
        for i, out in enumerate((channels, 4 * channels, 16 * channels, 32 * channels, 32 * channels)):
            _layer(shapes, f"multiperioddisc.discriminators.{p}.convs.{i}", out, width, 5, 1, spectral=True)
            width = out
        _layer(shapes, f"multiperioddisc.discriminators.{p}.conv_post", 1, width, 3, 1, spectral=True)
    for w in range(3):
        prefix = f"multiresddisc.discriminators.{w}"
        for k in range(5):
            for i, taps in enumerate((9, 9, 9, 9, 3)):
                width = channels if i else 2
                _layer(shapes, f"{prefix}.band_convs.{k}.{i}", channels, width, 3, taps, spectral=True)
        _layer(shapes, f"{prefix}.conv_post", 1, channels, 3, 3, spectral=True)
    return shapes


def _decoder_shapes(sizes: Sizes, post: str, decoder: str) -> Shapes:
    shapes: Shapes = {}
    width = sizes.widths[-1]
    _layer(shapes, post, sizes.latent, sizes.code_dim, 1, 1)
    _layer(shapes, f"{decoder}.conv_in", width, sizes.latent, 3, 3)
    for level in reversed(range(len(sizes.widths))):
        out = sizes.widths[level]
        width = _level(shapes, f"{decoder}.up.{level}", width, out, sizes.blocks + 1, level in sizes.attention)
        if level >= len(sizes.widths) - sizes.resamplings:
            _layer(shapes, f"{decoder}.up.{level}.upsample.conv", out, out, 3, 3)
    _middle(shapes, decoder, sizes.widths[-1], norm_width=width)
    _layer(shapes, f"{decoder}.conv_out", 4**sizes.haar_levels, width, 3, 3)
    return shapes


def _layer(shapes: Shapes, name: str, out: int, *others: int, spectral: bool = False) -> None:
    if spectral:
        shapes |= {f"{name}.weight_u": (out,), f"{name}.weight_v": (math.prod(others),)}
    shapes[f"{name}.weight_orig" if spectral else f"{name}.weight"] = (out, *others)
    shapes[f"{name}.bias"] = (out,)


def _block(shapes: Shapes, name: str, width: int, out: int) -> None:
    _layer(shapes, f"{name}.norm1", width)
    _layer(shapes, f"{name}.conv1", out, width, 3, 3)
    _layer(shapes, f"{name}.norm2", out)
    _layer(shapes, f"{name}.conv2", out, out, 3, 3)
    if width != out:
        _layer(shapes, f"{name}.nin_shortcut", out, width, 1, 1)


def _attention(shapes: Shapes, name: str, width: int) -> None:
    _layer(shapes, f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        _layer(shapes, f"{name}.{part}", width, width, 1, 1)


def _level(shapes: Shapes, name: str, width: int, out: int, blocks: int, attention: bool) -> int:
    for b in range(blocks):
        _block(shapes, f"{name}.block.{b}", width, out)
        if attention:
            _attention(shapes, f"{name}.attn.{b}", out)
        width = out
    return out


def _middle(shapes: Shapes, name: str, width: int, norm_width: int | None = None) -> None:
    _block(shapes, f"{name}.mid.block_1", width, width)
    _attention(shapes, f"{name}.mid.attn_1", width)
    _block(shapes, f"{name}.mid.block_2", width, width)
    _layer(shapes, f"{name}.norm_out", norm_width or width)


def random_state(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """Returns float32 weights of these shapes, among which none is without effect."""
    random, state = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape)
        if name.endswith("bias"):
            values *= 0.2
        elif len(shape) == 1:
            values = 1 + 0.3 * values
        elif name != "quantizer.embedding.weight":
            values /= math.sqrt(math.prod(shape[1:]))
        state[name] = values.astype(np.float32)
    if "head.out.bias" in state:  # quiet, with one bin at the limit and phases beyond one turn
        bins = len(state["head.out.bias"]) // 2
        state["head.out.bias"][:bins] -= 3
        state["head.out.bias"][3] = 8
        state["head.out.weight"][bins:] *= 3
    return state
