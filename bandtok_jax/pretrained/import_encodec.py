"""EnCodec's published weights in our layout: the package encodec's state_dict (.th), and transformers' EncodecModel.

Both hold the same arrays by other names. Kernels are `[channels_out, channels_in, taps]`, those of transposed
convolutions `[channels_in, channels_out, taps]`; here the axes are the other way round, and the norms of weight
normalisation are multiplied into the kernels. The two biases of an LSTM are added.
"""

from collections.abc import Iterator, Mapping, Sequence
import os

import numpy as np

from bandtok_jax.codecs.component import Component
from bandtok_jax.formats import safetensors, torch_checkpoint
from bandtok_jax.pretrained import published_arrays, seanet_names
from bandtok_jax.pretrained.published_arrays import NamedArrays
from bandtok_jax.runtime import expect, untrusted

# Parts of the names of arrays in the package encodec, and those in transformers.
_TRANSFORMERS_NAMES = (
    (".model.", ".layers."), (".conv.conv.", ".conv."), (".convtr.convtr.", ".conv."), (".vq.", "."),
    ("._codebook.", ".codebook."),
)  # fmt: skip
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
OFFICIAL_RATE_HZ = 24_000  # of the one causal model of the package, whose file does not name its rate
LICENCE = "cc-by-nc-4.0"  # of encodec 0.1.1, with which the weights were published
_CURE = "give the whole files of EnCodec's 24 kHz model"
# The 48 kHz model normalises each second over its time and by its loudness, a number beside the codes.
_UNSUPPORTED = "the 48 kHz model keeps a loudness beside its codes, and only that of 24 kHz can be imported"
_MOST_STAGES, _MOST_LAYERS, _MOST_LEVELS = 16, 16, 1024  # far above every published model
# Settings of transformers' EncodecConfig. Most have one value that can be imported, that of the 24 kHz model.
_SETTINGS = {
    "model_type": expect.one_of("encodec"),
    "sampling_rate": expect.whole(1, 1 << 20),
    "use_causal_conv?": expect.one_of(True),
    "pad_mode?": expect.one_of("reflect"),
    "trim_right_ratio?": expect.one_of(1.0, 1),
    "kernel_size?": expect.one_of(7),
    "last_kernel_size?": expect.one_of(7),
    "residual_kernel_size?": expect.one_of(3),
    "num_residual_layers?": expect.one_of(1),
    "compress?": expect.one_of(2),
    "use_conv_shortcut?": expect.one_of(True),
}
_OF_48_KHZ = {"audio_channels": 1, "normalize": False, "norm_type": "weight_norm", "chunk_length_s": None}


def read_encodec(path: str) -> Component:
    """Reads EnCodec's 24 kHz model, or another causal mono one, as the tokenizer of a codec.

    Args:
      path: a `.th` of the package encodec, or a folder of transformers or its safetensors with config.json beside it.

    Raises:
      ValueError, FileNotFoundError: no such file, a damaged one, or another model.
    """
    if os.path.isdir(path) or path.endswith(".safetensors"):
        return _read_transformers(path)
    content = torch_checkpoint.read_torch(path)
    with untrusted.reading(path, _CURE):
        if not isinstance(content, Mapping) or not all(isinstance(leaf, np.ndarray) for leaf in content.values()):
            raise ValueError("it holds no plain state_dict")
        return _component(content, OFFICIAL_RATE_HZ, path)


def _read_transformers(path: str) -> Component:
    weights_file, config_file = published_arrays.find_files(path, WEIGHTS_FILE, CONFIG_FILE)
    settings = untrusted.read_json(config_file, expect.mapping(expect.anything), cure=_CURE)
    with untrusted.reading(config_file, _CURE):
        for key, value in _OF_48_KHZ.items():
            if settings.get(key, value) != value:
                raise ValueError(f"{key} is {untrusted.shown(settings[key])}: {_UNSUPPORTED}")
        expect.record(_SETTINGS)(settings, "")
    with untrusted.reading(weights_file, _CURE):
        flat = safetensors.load_flat(weights_file)
        for part, short in (("original0", "weight_g"), ("original1", "weight_v")):  # names since PyTorch 2.1
            flat = {name.replace(f"parametrizations.weight.{part}", short): leaf for name, leaf in flat.items()}
        return _component(flat, settings["sampling_rate"], path, _TRANSFORMERS_NAMES)


def _component(
    state: Mapping[str, np.ndarray], rate_hz: int, path: str, renamed: Sequence[tuple[str, str]] = ()
) -> Component:
    """Returns the component of arrays.

    Args:
      renamed: parts of the names of the package encodec, and those of the file.
    """
    if any(".norm." in name for name in state):
        raise ValueError(f"it has group norms: {_UNSUPPORTED}")
    arrays = NamedArrays(state, renamed)
    # A stage is a residual unit, an ELU and a convolution. The LSTM follows the first convolution and all stages.
    stages = next((n for n in range(1, _MOST_STAGES) if f"encoder.model.{3 * n + 1}.lstm.weight_ih_l0" in arrays), 0)
    lstm_layers = arrays.count(f"encoder.model.{3 * stages + 1}.lstm.weight_ih_l{{}}", _MOST_LAYERS)
    rows = arrays.count("quantizer.vq.layers.{}._codebook.embed", _MOST_LEVELS)
    if not stages or not rows:
        raise ValueError(f"it has no {'codebooks' if stages else 'LSTM after strided convolutions'} of EnCodec")
    parameters = dict(_parameters(arrays, stages, lstm_layers))
    buffers = dict(_codebooks(arrays, rows))
    published_arrays.require_empty(arrays.remaining, "no such EnCodec has")
    codebook_size, latent_dim = buffers["quantizer.levels.0.vectors"].shape
    model = {
        "kind": "encodec",
        **seanet_names.sizes(parameters, stages),
        "latent_dim": latent_dim,
        "rows": rows,
        "codebook_size": codebook_size,
        "lstm_layers": lstm_layers,
    }
    config = seanet_names.config(model, rate_hz)
    return published_arrays.component(config, parameters, path, buffers, LICENCE)


def _parameters(arrays: NamedArrays, stages: int, lstm_layers: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of encoder and decoder by our names."""

    def lstm(ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
        for number in range(lstm_layers):
            for part, name in (("input_kernel", "weight_ih"), ("recurrent_kernel", "weight_hh")):
                kernel = arrays.take(f"{theirs}.lstm.{name}_l{number}", 2)
                yield f"{ours}.layers.{number}.{part}", np.ascontiguousarray(kernel.T)
            first, second = (arrays.take(f"{theirs}.lstm.bias_{part}_l{number}", 1) for part in ("ih", "hh"))
            if first.shape != second.shape:
                raise ValueError(f"the biases of {theirs}.lstm have the shapes {first.shape} and {second.shape}")
            yield f"{ours}.layers.{number}.bias", first + second

    yield from seanet_names.coders(arrays, stages, shortcut=True, memories=1)
    yield from lstm("encoder_lstm", f"encoder.model.{3 * stages + 1}")
    yield from lstm("decoder_lstm", "decoder.model.1")


def _codebooks(arrays: NamedArrays, rows: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields codebooks and their statistics by our names."""
    for row in range(rows):
        ours, theirs = f"quantizer.levels.{row}", f"quantizer.vq.layers.{row}._codebook"
        if not arrays.take(f"{theirs}.inited", 1).all():
            raise ValueError(f"{theirs} has not been trained")
        yield f"{ours}.vectors", arrays.take(f"{theirs}.embed", 2)
        yield f"{ours}.counts", arrays.take(f"{theirs}.cluster_size", 1)
        yield f"{ours}.sums", arrays.take(f"{theirs}.embed_avg", 2)
