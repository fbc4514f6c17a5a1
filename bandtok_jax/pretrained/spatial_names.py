"""Names of the arrays of a `SpatialEncoder` and a `SpatialDecoder`: ours, and those of programs that follow VQGAN."""

from collections.abc import Iterator, Sequence


def encoder_names(
    ours: str, theirs: str, channels: Sequence[int], num_blocks: int, halvings: int, attention: Sequence[int], stem: int
) -> Iterator[tuple[str, str]]:
    """Yields our name of every array of a `SpatialEncoder`, and theirs.

    Args:
      ours, theirs: prefixes of the names, without the last dot.
      channels, num_blocks, halvings: arguments of the encoder.
      attention: its attention_levels.
      stem: its stem_channels.
    """
    yield from layer(f"{ours}.conv_in", f"{theirs}.conv_in")
    yield from _middle(ours, theirs)
    width = stem
    for number, out in enumerate(channels):
        level = f"{theirs}.down.{number}"
        yield from _level(f"{ours}.levels.{number}", level, num_blocks, width != out, number in attention)
        if number < halvings:
            yield from layer(f"{ours}.levels.{number}.downsample", f"{level}.downsample.conv")
        width = out


def decoder_names(
    ours: str, theirs: str, channels: Sequence[int], num_blocks: int, doublings: int, attention: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Yields our name of every array of a `SpatialDecoder`, and theirs; see `encoder_names`."""
    yield from layer(f"{ours}.conv_in", f"{theirs}.conv_in")
    yield from _middle(ours, theirs)
    width = channels[-1]
    # Their levels are counted from the finest, ours in the order of computation.
    for place, (number, out) in enumerate(reversed(list(enumerate(channels)))):
        level = f"{theirs}.up.{number}"
        yield from _level(f"{ours}.levels.{place}", level, num_blocks, width != out, number in attention)
        if place < doublings:
            yield from layer(f"{ours}.levels.{place}.upsample", f"{level}.upsample.conv")
        width = out


def layer(ours: str, theirs: str, weight: str = "kernel") -> Iterator[tuple[str, str]]:
    """Yields the names of a layer of PyTorch; `weight` is our name of its `weight`."""
    yield f"{ours}.{weight}", f"{theirs}.weight"
    yield f"{ours}.bias", f"{theirs}.bias"


def _level(ours: str, theirs: str, num_blocks: int, shortcut: bool, attention: bool) -> Iterator[tuple[str, str]]:
    for block in range(num_blocks):
        yield from _block(f"{ours}.blocks.{block}", f"{theirs}.block.{block}", shortcut and block == 0)
        if attention:
            yield from _attention(f"{ours}.attention.{block}", f"{theirs}.attn.{block}")


def _middle(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """Yields the names of the middle blocks and of the layers at the end, which the last level precedes."""
    yield from _block(f"{ours}.middle_in", f"{theirs}.mid.block_1", shortcut=False)
    yield from _attention(f"{ours}.middle_attention", f"{theirs}.mid.attn_1")
    yield from _block(f"{ours}.middle_out", f"{theirs}.mid.block_2", shortcut=False)
    yield from layer(f"{ours}.norm", f"{theirs}.norm_out", "scale")
    yield from layer(f"{ours}.conv_out", f"{theirs}.conv_out")


def _block(ours: str, theirs: str, shortcut: bool) -> Iterator[tuple[str, str]]:
    for own, their in (("in", "1"), ("out", "2")):
        yield from layer(f"{ours}.norm_{own}", f"{theirs}.norm{their}", "scale")
        yield from layer(f"{ours}.conv_{own}", f"{theirs}.conv{their}")
    if shortcut:
        yield from layer(f"{ours}.shortcut", f"{theirs}.nin_shortcut")


def _attention(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from layer(f"{ours}.norm", f"{theirs}.norm", "scale")
    for own, their in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj_out")):
        yield from layer(f"{ours}.{own}", f"{theirs}.{their}")
