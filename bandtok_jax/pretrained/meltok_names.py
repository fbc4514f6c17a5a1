"""Names of MelTok's arrays: ours, and those of the published checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bandtok_jax.pretrained import import_vocos

# Prefixes of the decoder's names in both stages: of its first layer, which follows the codebook, and of the others.
STAGE1_DECODER = ("post_quant_conv", "decoder")
STAGE2_DECODER = ("feature_extractor.mel_decoder.0", "feature_extractor.mel_decoder.1")


def tokenizer_names(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields our name of every array of a `MelTok`, and theirs.

    Args:
      settings: the group `model` of a configuration.
    """
    yield from _layer("encoder.conv_in", "encoder.conv_in")
    yield from _middle("encoder", "encoder")
    levels = range(len(settings["channels"]))
    yield from _levels("encoder", "encoder.down", levels, settings, "downsample", settings["channels"][0] // 2)
    yield from _layer("pre_quantization", "quant_conv")
    yield "quantizer.vectors", "quantizer.embedding.weight"
    yield from _decoder_names(settings, *STAGE1_DECODER)


def vocoder_names(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields our name of every array of a `TokenVocoder`, and theirs; see `tokenizer_names`."""
    yield from _decoder_names(settings, *STAGE2_DECODER)
    for ours, theirs in import_vocos.published_names(settings["num_layers"]):
        yield f"vocos.{ours}", theirs


def _decoder_names(settings: Mapping[str, Any], post: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from _layer("decoder.post_quantization", post)
    yield from _layer("decoder.conv_in", f"{theirs}.conv_in")
    yield from _middle("decoder", theirs)
    levels = range(len(settings["channels"]))[::-1]
    yield from _levels("decoder", f"{theirs}.up", levels, settings, "upsample", settings["channels"][-1])


def _levels(
    ours: str, theirs: str, levels: Sequence[int], settings: Mapping[str, Any], resampling: str, width: int
) -> Iterator[tuple[str, str]]:
    """Yields the names of all levels, in the order of computation.

    Args:
      levels: their numbers, from fine to coarse, of each of our levels.
      resampling: "downsample" or "upsample".
      width: channels before the first level.
    """
    blocks = settings["num_res_blocks"] + (resampling == "upsample")
    resamplings = settings["compression"].bit_length() - 1 - settings["haar_levels"]
    for place, number in enumerate(levels):
        for block in range(blocks):
            shortcut = block == 0 and width != settings["channels"][number]
            yield from _block(f"{ours}.levels.{place}.blocks.{block}", f"{theirs}.{number}.block.{block}", shortcut)
            if number in settings["attention_levels"]:
                yield from _attention(f"{ours}.levels.{place}.attention.{block}", f"{theirs}.{number}.attn.{block}")
        if place < resamplings:
            yield from _layer(f"{ours}.levels.{place}.{resampling}", f"{theirs}.{number}.{resampling}.conv")
        width = settings["channels"][number]


def _middle(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """Yields the names of the middle blocks and of the layers at the end, which the last level precedes."""
    yield from _block(f"{ours}.middle_in", f"{theirs}.mid.block_1", shortcut=False)
    yield from _attention(f"{ours}.middle_attention", f"{theirs}.mid.attn_1")
    yield from _block(f"{ours}.middle_out", f"{theirs}.mid.block_2", shortcut=False)
    yield from _layer(f"{ours}.norm", f"{theirs}.norm_out", "scale")
    yield from _layer(f"{ours}.conv_out", f"{theirs}.conv_out")


def _block(ours: str, theirs: str, shortcut: bool) -> Iterator[tuple[str, str]]:
    for own, their in (("in", "1"), ("out", "2")):
        yield from _layer(f"{ours}.norm_{own}", f"{theirs}.norm{their}", "scale")
        yield from _layer(f"{ours}.conv_{own}", f"{theirs}.conv{their}")
    if shortcut:
        yield from _layer(f"{ours}.shortcut", f"{theirs}.nin_shortcut")


def _attention(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from _layer(f"{ours}.norm", f"{theirs}.norm", "scale")
    for own, their in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj_out")):
        yield from _layer(f"{ours}.{own}", f"{theirs}.{their}")


def _layer(ours: str, theirs: str, weight: str = "kernel") -> Iterator[tuple[str, str]]:
    yield f"{ours}.{weight}", f"{theirs}.weight"
    yield f"{ours}.bias", f"{theirs}.bias"
