"""Names and sizes of SEANet's encoder and decoder in published weights, for the importers of EnCodec and Mimi.

The names are those of github.com/facebookresearch/encodec, modules/seanet.py, which the package moshi has too. A stage
is a residual unit, an ELU and a convolution, so that it takes three numbers.
"""

from collections.abc import Iterator, Mapping
import math
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.config.load import load_config
from bandtok_jax.pretrained.published_arrays import NamedArrays


def coders(arrays: NamedArrays, stages: int, *, shortcut: bool, memories: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the convolutions of encoder and decoder by our names.

    Args:
      stages: number of stages of each.
      shortcut: whether the residual units have a convolution beside theirs.
      memories: modules between the stages and the convolution at the rate of the latents.
    """

    def layer(ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{ours}.kernel", arrays.kernel(theirs)
        yield f"{ours}.bias", arrays.take(f"{theirs}.bias", 1)

    def unit(ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
        yield from layer(f"{ours}.wide.convolution", f"{theirs}.block.1.conv.conv")
        yield from layer(f"{ours}.single", f"{theirs}.block.3.conv.conv")
        if shortcut:
            yield from layer(f"{ours}.shortcut", f"{theirs}.shortcut.conv.conv")

    last = 3 * stages + 2 + memories
    yield from layer("encoder_in.convolution", "encoder.model.0.conv.conv")
    for stage in range(stages):
        yield from unit(f"encoder_stages.{stage}.unit", f"encoder.model.{3 * stage + 1}")
        yield from layer(f"encoder_stages.{stage}.down.convolution", f"encoder.model.{3 * stage + 3}.conv.conv")
    yield from layer("encoder_out.convolution", f"encoder.model.{last}.conv.conv")
    yield from layer("decoder_in.convolution", "decoder.model.0.conv.conv")
    for stage in range(stages):
        first = 3 * stage + 2 + memories
        yield from layer(f"decoder_stages.{stage}.up", f"decoder.model.{first}.convtr.convtr")
        yield from unit(f"decoder_stages.{stage}.unit", f"decoder.model.{first + 1}")
    yield from layer("decoder_out.convolution", f"decoder.model.{last}.conv.conv")


def sizes(parameters: Mapping[str, np.ndarray], stages: int) -> dict[str, Any]:
    """Returns `encoder_dim` and `strides`; ValueError for kernels that are not twice as long as a stride."""
    taps = [len(parameters[f"encoder_stages.{stage}.down.convolution.kernel"]) for stage in range(stages)]
    if any(number % 2 for number in taps):
        raise ValueError(f"its strided kernels have {taps} taps, not twice a stride")
    encoder_dim = parameters["encoder_in.convolution.kernel"].shape[2]
    return {"encoder_dim": encoder_dim, "strides": tuple(number // 2 for number in taps)}


def config(model: dict[str, Any], rate_hz: int, frames_per_column: int = 1) -> ConfigDict:
    """Returns the configuration of a codec with this group `model`, and clips of a second (EnCodec's; else our choice).

    Args:
      frames_per_column: frames at the rate of the last stage for each column of codes.
    """
    result = load_config("dac:base_24khz")
    with result.unlocked():
        result.data.sample_rate_hz, result.model = rate_hz, ConfigDict(model)
        column = frames_per_column * math.prod(model["strides"])
        result.data.clip_samples = math.ceil(rate_hz / column) * column
    return result
