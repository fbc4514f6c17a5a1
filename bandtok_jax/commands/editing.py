"""Regions of a track that a codec's language model regenerates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.regions import Region
from bandtok_jax.commands import files, music_files
from bandtok_jax.formats import bt_file
from bandtok_jax.runtime import atomic_file, untrusted
from bandtok_jax.runtime.progress import progress_bar


class Edit(NamedTuple):
    """A description of a written result.

    Attributes:
      samples, columns: those of the whole track.
      new_columns, new_codes: numbers of the columns with new codes, and of the new codes.
    """

    samples: int
    columns: int
    new_columns: int
    new_codes: int
    clipped_samples: int


def edit(
    codec: Codec,
    source: str,
    target: str,
    regions: Sequence[Region],
    *,
    prompt: str | None = None,
    seed: int = 0,
    **sampling: Any,
) -> Edit:
    """Regenerates regions of a track and writes the whole track.

    Args:
      codec: with a language model that was trained to fill in.
      source: an audio file, or a `.bt` file of the codec.
      target: an audio file or a `.bt` file.
      regions: see `Codec.edit`.
      prompt, seed, sampling: see `GridLanguageModel.edit`.

    Raises:
      ValueError, OSError: before any work, where the target cannot be written; else as `Codec.edit`.
    """
    files.check_paths(source, target)
    music_files.check_target(codec, target)
    atomic_file.check(target)
    codec.check_editable()
    if files.ending(source) == ".bt":
        codes, header = bt_file.read_codes(source)
        codec.check_header(header, source)
        samples, gain = header.samples, 1.0
    else:
        codes, samples, gain = music_files.encode(codec, source)
    with untrusted.naming(source):
        cells = codec.region_cells(regions, len(codes))
    new_columns = int(cells.any(axis=1).sum())
    with progress_bar(total=new_columns, unit="column", leave=False) as bar:

        def report(done: int) -> None:
            bar.update(done - bar.n)

        codes = codec.edit(codes, regions, prompt, seed, report=report, **sampling)
    _, clipped = music_files.write(codec, target, [codes], samples, gain, seed)
    return Edit(samples, len(codes), new_columns, int(cells.sum()), clipped)
