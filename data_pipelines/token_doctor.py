"""Inspection of a folder of tokens (`bandtok doctor --data TOKENS`): every record is read once and checked."""

import os

from bandtok_jax.data_pipelines.token_manifest import read_token_manifest
from bandtok_jax.data_pipelines.token_source import TokenSource
from bandtok_jax.runtime import untrusted
from bandtok_jax.runtime.progress import progress_bar


def report(directory: str | os.PathLike, columns: int) -> str:
    """Returns text about every split, and about crops of a number of columns.

    Raises:
      FileNotFoundError, ValueError: missing or damaged tokens, with the cure.
    """
    if columns < 1:
        raise ValueError(f"a crop of {columns} columns: give at least 1")
    manifest = read_token_manifest(directory)
    rate = manifest["columns_per_second"]
    lines: list[str] = []
    for name, split in manifest["splits"].items():
        if not split["records"]:
            continue
        source = TokenSource(directory, name)
        captions = ends = 0
        with progress_bar(total=len(source), unit="record", unit_scale=True, desc="read", leave=False) as bar:
            for number in range(len(source)):
                record = source[number]
                captions, ends = captions + bool(record["caption"]), ends + record["ends"]
                bar.update()
        lengths = source.lengths
        short = (lengths < columns).mean()
        # A crop may reach over both ends of a track, see `CropTokens`.
        padded = 1 - lengths.sum() / (lengths + columns - 1).sum()
        lines += [
            f"{name:<12}{len(source)} records, {lengths.sum()} columns, {lengths.sum() / rate / 3600:.2f} h, "
            f"all readable; {captions} with a caption, {len(source) - ends} clips that do not end by themselves",
            f"{'':<12}crops of {columns} columns ({columns / rate:.2f} s): {padded:.1%} of a batch is padding; "
            f"{short:.1%} of the records are shorter than a crop (the shortest has {lengths.min() / rate:.2f} s)"
            + (": smaller data.columns waste less" if padded > 0.2 else ""),
        ]
    codes = f"{manifest['rows']} rows ({manifest['row_kind']}) of {manifest['codebook_size']} codes"
    lines.append(f"{'tokens':<12}{codes}, by {manifest['tokenizer'] or 'an unnamed tokenizer'}")
    lines += [f"{'left out':<12}{entry['track']}: {entry['reason']}" for entry in manifest["left_out"]]
    return "\n".join(map(untrusted.printable, lines))
