"""Names and layouts of the arrays of AudioLDM's 48 kHz autoencoder and vocoder, and their sizes, from the shapes.

Both are in audioldm_48k.pth, under `first_stage_model.`. All other arrays of that file belong to AudioLDM's generative
model and its text encoders and are not read, except for the number `scale_factor`.

Kernels of the autoencoder are `[channels_out, channels_in, time, mel]`. Those of the vocoder are `[channels_out,
channels_in, taps]`, or the first two the other way round where they are transposed, and hold no weight norm.
"""

from collections.abc import Iterable, Iterator, Mapping
import itertools
import re
from typing import Any

import numpy as np

from bandtok_jax.formats import safetensors
from bandtok_jax.pretrained import published_arrays
from bandtok_jax.pretrained.spatial_names import decoder_names, encoder_names, layer

PREFIX, VOCODER, SCALE = "first_stage_model.", "vocoder.", "scale_factor"
DILATIONS = (1, 3, 5)  # published; no shape shows them
_GROUPS = 32  # of every group norm
# Our names of layers whose kernels have no axes of time and mel.
_LINEAR = r"((pre|post)_latent|(middle_attention|attention\.\d+)\.(query|key|value|out))\.kernel$"
State = Mapping[str, np.ndarray]
Weights = dict[str, Any]  # {"parameters": tree, "buffers": tree}


def read_mel_vae(state: State) -> tuple[dict[str, Any], Weights]:
    """Returns the keyword arguments of `MelVAE`, and its weights.

    Args:
      state: arrays by their published names.

    Raises:
      ValueError: an array is missing, unknown, of another shape or not finite.
    """
    arrays = {name: leaf for name, leaf in _first_stage(state).items() if not name.startswith(VOCODER)}
    scale = np.asarray(state.get(SCALE, np.nan), np.float32)
    if scale.size != 1 or not (np.isfinite(scale).all() and scale.min() > 0):
        raise ValueError(f"it has no {SCALE}, a number above 0")
    settings = _vae_sizes(arrays)
    parameters = _taken(arrays, _vae_names(settings))
    # The number of mel bins is in the vocoder's shapes alone.
    settings["mels"] = _shape(_first_stage(state), f"{VOCODER}conv_pre.weight", 3)[1]
    return settings, {"parameters": parameters, "buffers": {"decoder": {"scale": scale.reshape(())}}}


def read_hifigan(state: State) -> tuple[dict[str, Any], Weights]:
    """Returns the keyword arguments of `HiFiGAN`, and its weights; see `read_mel_vae`."""
    arrays = {name: leaf for name, leaf in _first_stage(state).items() if name.startswith(VOCODER)}
    settings = _hifigan_sizes(arrays)
    names = _hifigan_names(len(settings["rates"]), len(settings["block_kernel_sizes"]))
    return settings, {"parameters": _taken(arrays, names), "buffers": {}}


def _first_stage(state: State) -> dict[str, np.ndarray]:
    return {name.removeprefix(PREFIX): leaf for name, leaf in state.items() if name.startswith(PREFIX)}


# ---- sizes -----------------------------------------------------------------------------------------------------------


def _shape(arrays: State, name: str, axes: int) -> tuple[int, ...]:
    if name not in arrays:
        raise ValueError(f"it has no {PREFIX}{name}")
    if np.ndim(arrays[name]) != axes or not np.size(arrays[name]):
        raise ValueError(f"{PREFIX}{name} has the shape {list(np.shape(arrays[name]))}, not {axes} axes")
    return np.shape(arrays[name])


def _count(arrays: State, name: str) -> int:
    """Returns how many of the arrays `name.format(0)`, `name.format(1)` and so on there are, but at least 1."""
    return max(1, next(number for number in itertools.count() if name.format(number) not in arrays))


def _vae_sizes(arrays: State) -> dict[str, Any]:
    levels = range(_count(arrays, "encoder.down.{}.block.0.conv1.weight"))
    channels = tuple(_shape(arrays, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in levels)
    if any(width % _GROUPS for width in channels):
        raise ValueError(f"its levels have {list(channels)} channels, which {_GROUPS} groups do not divide")
    return {
        "patch": 1,
        "channels": channels,
        "num_res_blocks": _count(arrays, "encoder.down.0.block.{}.conv1.weight"),
        "latent_channels": _shape(arrays, "post_quant_conv.weight", 4)[0],
        "attention_levels": tuple(n for n in levels if f"encoder.down.{n}.attn.0.norm.weight" in arrays),
        "norm_groups": _GROUPS,
    }


def _hifigan_sizes(arrays: State) -> dict[str, Any]:
    stages = range(_count(arrays, VOCODER + "ups.{}.weight"))
    taps = [_shape(arrays, f"{VOCODER}ups.{stage}.weight", 3)[2] for stage in stages]
    blocks = _count(arrays, VOCODER + "resblocks.{}.convs1.0.weight") // len(stages)
    pairs = _count(arrays, VOCODER + "resblocks.0.convs1.{}.weight")
    if pairs != len(DILATIONS) or not blocks or any(size % 2 for size in taps):
        raise ValueError(
            f"its vocoder has {blocks} blocks of {pairs} pairs in each stage and kernels of {taps} taps between them, "
            f"not blocks of {len(DILATIONS)} pairs and even kernels"
        )
    return {
        "initial_channels": _shape(arrays, VOCODER + "conv_pre.weight", 3)[0],
        "rates": tuple(size // 2 for size in taps),
        "block_kernel_sizes": tuple(
            _shape(arrays, f"{VOCODER}resblocks.{j}.convs1.0.weight", 3)[2] for j in range(blocks)
        ),
        "dilations": DILATIONS,
        "normalisation": "none",
    }


# ---- names -----------------------------------------------------------------------------------------------------------


def _taken(arrays: dict[str, np.ndarray], names: Iterable[tuple[str, str]]) -> Any:
    """Returns the tree of arrays by our names and in our layout, which uses all of `arrays`."""
    ours = {}
    for own, theirs in names:
        leaf = published_arrays.take(arrays, theirs, prefix=PREFIX)
        ours[own] = np.ascontiguousarray(_in_our_layout(own, leaf))
    published_arrays.require_empty(arrays, "it cannot use", PREFIX)
    return safetensors.unflatten(ours)


def _in_our_layout(ours: str, leaf: np.ndarray) -> np.ndarray:
    if leaf.ndim != 4:
        return leaf.T  # [taps, in, out], and transposed [taps, out, in]
    if re.search(_LINEAR, ours) and leaf.shape[2:] == (1, 1):
        return leaf[:, :, 0, 0].T
    return leaf.transpose(2, 3, 1, 0)  # [time, mel, in, out]


def _vae_names(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    channels, blocks, attention = settings["channels"], settings["num_res_blocks"], settings["attention_levels"]
    halvings = len(channels) - 1
    yield from encoder_names("encoder", "encoder", channels, blocks, halvings, attention, channels[0])
    yield from layer("encoder.pre_latent", "quant_conv")
    yield from layer("decoder.post_latent", "post_quant_conv")
    yield from decoder_names("decoder", "decoder", channels, blocks + 1, halvings, attention)


def _hifigan_names(stages: int, blocks: int) -> Iterator[tuple[str, str]]:
    yield from layer("conv_in", f"{VOCODER}conv_pre")
    for stage in range(stages):
        yield from layer(f"stages.{stage}", f"{VOCODER}ups.{stage}")
        for block in range(blocks):
            ours, theirs = f"blocks.{stage}.{block}", f"{VOCODER}resblocks.{stage * blocks + block}"
            for pair in range(len(DILATIONS)):
                yield from layer(f"{ours}.dilated.{pair}", f"{theirs}.convs1.{pair}")
                yield from layer(f"{ours}.plain.{pair}", f"{theirs}.convs2.{pair}")
    yield from layer("conv_out", f"{VOCODER}conv_post")
