"""BigVGAN's published weights in our layout: config.json with bigvgan_generator.pt (github.com/NVIDIA/BigVGAN).

Its kernels are `[channels_out, channels_in, taps]`, those of transposed convolutions `[channels_in, channels_out,
taps]`; here the axes are the other way round, and the norms of weight normalisation are multiplied into the kernels.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.codecs.component import Component
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import torch_checkpoint
from bandtok_jax.layers.anti_aliased_snake import low_pass_filter
from bandtok_jax.pretrained import published_arrays
from bandtok_jax.runtime import expect, untrusted

CONFIG_FILE, WEIGHTS_FILE = "config.json", "bigvgan_generator.pt"
_CURE = "give the whole files of a BigVGAN release"
_SIZE = expect.whole(1, 1 << 20)
_SETTINGS = {
    "resblock": expect.one_of("1"),
    "activation": expect.one_of("snake", "snakebeta"),
    "snake_logscale": expect.one_of(True, False),
    "use_tanh_at_final?": expect.one_of(True, False),
    "use_bias_at_final?": expect.one_of(True, False),
    "upsample_initial_channel": _SIZE,
    "upsample_rates": expect.listing(_SIZE, most=16, least=1),
    "upsample_kernel_sizes": expect.listing(_SIZE, most=16, least=1),
    "resblock_kernel_sizes": expect.listing(_SIZE, most=16, least=1),
    "resblock_dilation_sizes": expect.listing(expect.listing(_SIZE, most=16, least=1), most=16, least=1),
    "sampling_rate": _SIZE,
    "n_fft": _SIZE,
    "win_size": _SIZE,
    "hop_size": _SIZE,
    "num_mels": _SIZE,
    "fmin": expect.number(),
    "fmax": expect.optional(expect.number()),
}


def read_bigvgan(path: str) -> Component:
    """Reads a generator of BigVGAN as a vocoder, by its folder or by its weights with config.json beside them.

    Raises:
      ValueError, FileNotFoundError: no such file, a damaged one, or another model.
    """
    weights_file, config_file = published_arrays.find_files(path, WEIGHTS_FILE, CONFIG_FILE)
    settings = untrusted.read_json(config_file, expect.record(_SETTINGS, others=None), cure=_CURE)
    with untrusted.reading(config_file, _CURE):
        config = _config(settings)
    content = torch_checkpoint.read_torch(weights_file)
    with untrusted.reading(weights_file, _CURE):
        state = content.get("generator") if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping) or not all(isinstance(leaf, np.ndarray) for leaf in state.values()):
            raise ValueError("it holds no generator")
        remaining = dict(state)
        ours = dict(_arrays(remaining, settings))
        published_arrays.require_empty(remaining, "no BigVGAN of its config has")
        return published_arrays.component(config, ours, path)


def _config(settings: Mapping[str, Any]) -> ConfigDict:
    """Returns the configuration that would train such a model."""
    rates, dilations = settings["upsample_rates"], settings["resblock_dilation_sizes"]
    if settings["upsample_kernel_sizes"] != [2 * rate for rate in rates]:
        raise ValueError(f"upsample_kernel_sizes are not twice the upsample_rates {rates}")
    if len(dilations) != len(settings["resblock_kernel_sizes"]) or any(row != dilations[0] for row in dilations):
        raise ValueError(f"resblock_dilation_sizes is {dilations}: only one list for all kernel sizes can be imported")
    if settings["win_size"] != settings["n_fft"]:
        raise ValueError(f"win_size is {settings['win_size']} and n_fft {settings['n_fft']}: they must be the same")
    rate = settings["sampling_rate"]
    mel = MelDefinition(
        sample_rate_hz=rate,
        fft_samples=settings["n_fft"],
        hop_samples=settings["hop_size"],
        mels=settings["num_mels"],
        low_hz=float(settings["fmin"]),
        high_hz=float(settings["fmax"] or rate / 2),
    )
    config = load_config("hifigan:base")
    with config.unlocked():
        config.dtype = "float32"  # of the published files
        config.data.sample_rate_hz = rate
        config.data.clip_samples = 65536 // mel.hop_samples * mel.hop_samples  # published
        config.mel.update(dataclasses.asdict(mel))
        config.model = ConfigDict(
            {
                "kind": "bigvgan",
                "initial_channels": settings["upsample_initial_channel"],
                "rates": tuple(rates),
                "block_kernel_sizes": tuple(settings["resblock_kernel_sizes"]),
                "dilations": tuple(dilations[0]),
                "output": "tanh" if settings.get("use_tanh_at_final", True) else "clip",
                "normalisation": "none",
            }
        )
    return config


def _arrays(remaining: dict[str, np.ndarray], settings: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays by our names and in our layout, and removes them from `remaining`."""

    def take(name: str, axes: int) -> np.ndarray:
        leaf = published_arrays.take(remaining, name)
        if leaf.ndim != axes:
            raise ValueError(f"{name} has the shape {list(leaf.shape)}")
        return leaf

    def layer(ours: str, theirs: str, bias: bool = True) -> Iterator[tuple[str, np.ndarray]]:
        if f"{theirs}.weight_v" in remaining:
            direction, gain = (take(f"{theirs}.{name}", 3) for name in ("weight_v", "weight_g"))
            kernel = published_arrays.whole_kernel(direction, gain, f"{theirs}.weight_g")
        else:
            kernel = take(f"{theirs}.weight", 3)
        yield f"{ours}.kernel", np.ascontiguousarray(kernel.T)
        yield f"{ours}.bias", take(f"{theirs}.bias", 1) if bias else np.zeros(len(kernel), np.float32)

    def activation(ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
        for name in ("upsample.filter", "downsample.lowpass.filter"):
            if f"{theirs}.{name}" in remaining:
                stored = take(f"{theirs}.{name}", 3).reshape(-1)
                if stored.shape != published_filter.shape or not np.allclose(stored, published_filter, atol=1e-4):
                    raise ValueError(f"{theirs}.{name} is not the filter of BigVGAN")
        alpha = take(f"{theirs}.act.alpha", 1)
        beta = take(f"{theirs}.act.beta", 1) if settings["activation"] == "snakebeta" else alpha
        if not settings["snake_logscale"]:
            if not (alpha.min() > 0 and beta.min() > 0):
                raise ValueError(f"{theirs}.act holds frequencies or magnitudes that are not above 0")
            alpha, beta = np.log(alpha), np.log(beta)
        yield f"{ours}.log_alpha", alpha
        yield f"{ours}.log_beta", beta

    published_filter = low_pass_filter()
    sizes, pairs = len(settings["resblock_kernel_sizes"]), len(settings["resblock_dilation_sizes"][0])
    yield from layer("conv_in", "conv_pre")
    for stage in range(len(settings["upsample_rates"])):
        yield from layer(f"stages.{stage}", f"ups.{stage}.0")
        for block in range(sizes):
            ours, theirs = f"blocks.{stage}.{block}", f"resblocks.{stage * sizes + block}"
            for pair in range(pairs):
                yield from layer(f"{ours}.dilated.{pair}", f"{theirs}.convs1.{pair}")
                yield from layer(f"{ours}.plain.{pair}", f"{theirs}.convs2.{pair}")
            for number in range(2 * pairs):
                yield from activation(f"{ours}.activations.{number}", f"{theirs}.activations.{number}")
    yield from activation("activation", "activation_post")
    yield from layer("conv_out", "conv_post", bias=settings.get("use_bias_at_final", True))
