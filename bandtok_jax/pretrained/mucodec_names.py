"""Names and layouts of the arrays of mucodec.pt: MuCodec's quantizer and flow, and their sizes, from the shapes.

The file also holds constants that do not exist here: the filters of resamplers (`rsp48toclap.`, `rsq48tomuencoder.`,
`rsq48towav2vec.`) and `normfeat.sum_target_x2`, which no computation reads. It may hold the encoder, `muencoder.`,
which `muencoder_names` reads.

A kernel of the transformer's patches is `[D, channels, time, frequency]`, and here `[D, time * frequency * channels]`.
Arrays of latents are `[channels, frequencies]`, and here the other way round.
"""

from collections.abc import Iterator, Mapping
import functools
import itertools
from typing import Any

import numpy as np

from bandtok_jax.formats import safetensors
from bandtok_jax.pretrained import published_arrays

QUANTIZERS, TRANSFORMER = "rvq_muencoder_emb.quantizers.", "cfm_wrapper.estimator."
ENCODER = "muencoder."
HEAD_WIDTH = 72  # published; no shape shows it
MOST_STEPS = 1 << 30  # that a counter of training steps holds
_UNUSED = ("rsp48toclap.", "rsq48tomuencoder.", "rsq48towav2vec.", "normfeat.sum_target_x2")
State = Mapping[str, np.ndarray]


def read_flow(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns keyword arguments of `MuCodec`, and its weights but those of the two frozen networks.

    Args:
      state: arrays by their published names; those of the encoder are left out.

    Raises:
      ValueError: an array is missing, unknown, of another shape or not finite.
    """
    arrays = {name: leaf for name, leaf in state.items() if not name.startswith((ENCODER, *_UNUSED))}
    settings = _sizes(arrays)
    weights = dict(_taken(arrays, settings))
    published_arrays.require_empty(arrays, "MuCodec does not have")
    return settings, safetensors.unflatten(weights)


def _sizes(arrays: State) -> dict[str, Any]:
    """Returns the keyword arguments that the shapes show."""
    codebook_size, codebook_dim = _shape(arrays, f"{QUANTIZERS}0.codebook.weight", 2)
    dim, _, patch, _ = _shape(arrays, f"{TRANSFORMER}pos_embed.proj.weight", 4)
    return {
        "rows": _count(arrays, QUANTIZERS + "{}.codebook.weight"),
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "dim": dim,
        "num_layers": _count(arrays, TRANSFORMER + "transformer_blocks.{}.scale_shift_table"),
        "num_heads": max(dim // HEAD_WIDTH, 1),
        "feed_forward_dim": _shape(arrays, f"{TRANSFORMER}transformer_blocks.0.ff.net.0.proj.weight", 2)[0],
        "patch": patch,
    }


def _shape(arrays: State, name: str, axes: int) -> tuple[int, ...]:
    if name not in arrays:
        raise ValueError(f"it has no {name}")
    if np.ndim(arrays[name]) != axes or not np.size(arrays[name]):
        raise ValueError(f"{name} has the shape {list(np.shape(arrays[name]))}, not {axes} axes")
    return np.shape(arrays[name])


def _count(arrays: State, name: str) -> int:
    """Returns how many of the arrays `name.format(0)`, `name.format(1)` and so on there are."""
    return next(number for number in itertools.count() if name.format(number) not in arrays)


def _taken(arrays: dict[str, np.ndarray], settings: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields arrays by our names and in our layout, and removes them from `arrays`."""

    take = functools.partial(published_arrays.take, arrays)
    channels_and_bins = _shape(arrays, "normfeat.sum_x", 2)
    for ours, theirs in _names(settings):
        group, _, last = ours.rpartition(".")
        if last == "query_key_value":
            for kind, own in (("weight", "kernel"), ("bias", "bias")):
                yield f"{ours}.{own}", np.stack([take(f"{theirs}.to_{part}.{kind}") for part in "qkv"])
        elif last.startswith("project_") and theirs.startswith(QUANTIZERS):
            kernel = take(f"{theirs}.weight_v", f"{theirs}.parametrizations.weight.original1")
            yield f"{ours}.kernel", np.ascontiguousarray(kernel.T)
            gain = take(f"{theirs}.weight_g", f"{theirs}.parametrizations.weight.original0")
            yield f"{ours}.gain", gain.reshape(-1)
            yield f"{ours}.bias", take(f"{theirs}.bias")
        elif last == "embed":
            kernel = take(f"{theirs}.weight").transpose(0, 2, 3, 1)
            yield f"{ours}.kernel", np.ascontiguousarray(kernel.reshape(len(kernel), -1))
            yield f"{ours}.bias", take(f"{theirs}.bias")
        elif last in ("table", "vectors"):
            yield ours, take(theirs)
        elif last == "unused_steps":
            yield ours, np.clip(take(theirs), 0, MOST_STEPS).astype(np.int32)
        elif last == "zero_condition" or group.endswith("normaliser"):
            leaf = take(theirs)
            shape = () if last == "count" else channels_and_bins
            if leaf.size != np.prod(shape, dtype=int):
                raise ValueError(f"{theirs} has {leaf.size} numbers instead of {np.prod(shape, dtype=int)}")
            yield ours, np.asarray(leaf.reshape(shape).T, order="C")
        else:
            yield f"{ours}.kernel", take(f"{theirs}.weight")
            yield f"{ours}.bias", take(f"{theirs}.bias")


def _names(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields our name of each layer or single array, and theirs."""
    for number in range(settings["rows"]):
        ours, theirs = f"parameters.quantizer.levels.{number}", f"{QUANTIZERS}{number}"
        yield f"{ours}.project_in", f"{theirs}.in_proj"
        yield f"{ours}.project_out", f"{theirs}.out_proj"
        yield f"{ours}.vectors", f"{theirs}.codebook.weight"
        yield f"buffers.quantizer.levels.{number}.unused_steps", f"{theirs}.stale_counter"
    yield "parameters.flow.condition", "cond_muencoder_emb"
    yield "parameters.flow.zero_condition", "zero_cond_embedding1"
    for own, their in (("count", "counts"), ("sum", "sum_x"), ("sum_of_squares", "sum_x2")):
        yield f"buffers.flow.normaliser.{own}", f"normfeat.{their}"

    flow = "parameters.flow.transformer"
    yield f"{flow}.embed", f"{TRANSFORMER}pos_embed.proj"
    for own, their in (("in", 1), ("out", 2)):
        yield f"{flow}.time_{own}", f"{TRANSFORMER}adaln_single.emb.timestep_embedder.linear_{their}"
    yield f"{flow}.modulation", f"{TRANSFORMER}adaln_single.linear"
    yield f"{flow}.table", f"{TRANSFORMER}scale_shift_table"
    yield f"{flow}.project_out", f"{TRANSFORMER}proj_out"
    for number in range(settings["num_layers"]):
        ours, theirs = f"{flow}.blocks.{number}", f"{TRANSFORMER}transformer_blocks.{number}"
        yield f"{ours}.table", f"{theirs}.scale_shift_table"
        yield f"{ours}.query_key_value", f"{theirs}.attn1"
        for own, their in (("out", "attn1.to_out.0"), ("up", "ff.net.0.proj"), ("down", "ff.net.2")):
            yield f"{ours}.{own}", f"{theirs}.{their}"
