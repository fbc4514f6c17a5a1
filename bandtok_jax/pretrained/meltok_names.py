"""Names of MelTok's arrays: ours, and those of the published checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any

from bandtok_jax.pretrained import import_vocos
from bandtok_jax.pretrained.spatial_names import decoder_names, encoder_names, layer

# Prefixes of the decoder's names in both stages: of its first layer, which follows the codebook, and of the others.
STAGE1_DECODER = ("post_quant_conv", "decoder")
STAGE2_DECODER = ("feature_extractor.mel_decoder.0", "feature_extractor.mel_decoder.1")


def tokenizer_names(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields our name of every array of a `MelTok`, and theirs.

    Args:
      settings: the group `model` of a configuration.
    """
    channels, blocks = settings["channels"], settings["num_res_blocks"]
    levels = (_changes(settings), settings["attention_levels"])
    yield from encoder_names("encoder", "encoder", channels, blocks, *levels, channels[0] // 2)
    yield from layer("pre_quantization", "quant_conv")
    yield "quantizer.vectors", "quantizer.embedding.weight"
    yield from _decoder_names(settings, *STAGE1_DECODER)


def vocoder_names(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields our name of every array of a `TokenVocoder`, and theirs; see `tokenizer_names`."""
    yield from _decoder_names(settings, *STAGE2_DECODER)
    for ours, theirs in import_vocos.published_names(settings["num_layers"]):
        yield f"vocos.{ours}", theirs


def _decoder_names(settings: Mapping[str, Any], post: str, theirs: str) -> Iterator[tuple[str, str]]:
    channels, blocks = settings["channels"], settings["num_res_blocks"] + 1
    yield from layer("decoder.post_quantization", post)
    yield from decoder_names("decoder", theirs, channels, blocks, _changes(settings), settings["attention_levels"])


def _changes(settings: Mapping[str, Any]) -> int:
    """Returns how often the resolution changes after the wavelets."""
    return settings["compression"].bit_length() - 1 - settings["haar_levels"]
