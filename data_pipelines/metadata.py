"""The end of `bandtok prepare`: shards get their final names, TFDS its metadata, and the manifest says what there
is and what was left out.
"""

from collections import Counter
import json
import os
import re
import tempfile

from bandtok_jax.data_pipelines import prepare_shards, records, tf_example
from bandtok_jax.runtime import folder_lock, storage, untrusted

TFDS_METADATA = ("dataset_info.json", "features.json")
BEYOND_FULL_SCALE = 2.0  # a peak of floating point that is worth a word; what MP3 decodes to is often 1.2; our choice
UNKNOWN = "unknown"  # of a domain or licence that nobody gave
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def _shards(names):
    """Those of some names that are shards of a prepared data set."""
    return [name for name in names if re.fullmatch(rf"{records.NAME}-\w+\.array_record-\d+-of-\d+", name)]


def refuse_foreign(output):
    """Raises ValueError where a folder holds files and none of them was made here: they are the person's own."""
    names = [name for name in storage.names(output) if name != folder_lock.NAME]
    if names and records.WORKING_FOLDER not in names and not _shards(names):
        raise ValueError(
            f"{output} holds other files, such as {untrusted.printable(names[0], 60)}, and no records: "
            "give an empty or a new folder as --output"
        )


def remove(output):
    """Deletes a prepared data set and nothing else; the manifest first, so that no half of it passes for whole."""
    storage.remove(os.path.join(output, records.MANIFEST))
    shards = _shards(storage.names(output))
    paths = [os.path.join(output, name) for name in (records.TRACKS, *TFDS_METADATA, *shards)]
    storage.for_each(storage.remove, paths)


def _histogram(values, width):
    """{lower edge: tracks}, ordered."""
    counts = Counter(int(value // width * width) for value in values)
    return {str(edge): counts[edge] for edge in sorted(counts)}


def _hours(tracks):
    return round(sum(track["seconds"] for track in tracks) / 3600, 4)


def _by(tracks, name):
    """{value: {'tracks', 'hours'}} over one field of the tracks."""
    groups = {}
    for track in tracks:
        groups.setdefault(str(track[name]) or UNKNOWN, []).append(track)
    return {value: {"tracks": len(group), "hours": _hours(group)} for value, group in sorted(groups.items())}


def manifest(lines, splits, shards, left_out, others, notes, settings):
    tracks = [track for line in lines for track in line["tracks"]]
    split_tracks = {split: [track for track in tracks if track["split"] == split] for split in dict.fromkeys(splits)}
    notes = list(notes)
    if beyond := [track for track in tracks if track["peak"] >= BEYOND_FULL_SCALE]:
        worst = max(beyond, key=lambda track: track["peak"])
        notes.append(
            f"{len(beyond)} tracks are clipped in their records, the worst {worst['track']} with a peak of "
            f"{worst['peak']:g} where full scale is 1: lower their gain and prepare again"
        )
    if not split_tracks.get("validation"):
        notes.append(
            "no validation tracks: evaluation needs some; "
            "prepare again with more tracks, --tracks=CSV or a larger --validation-share"
        )
    if not split_tracks.get("train"):
        notes.append("no training tracks: prepare again with more tracks, --tracks=CSV or a smaller --validation-share")
    return {
        **settings,
        "version": 1,
        "splits": {
            split: {
                "tracks": len(group),
                "records": sum(shard["records"] for shard in shards[split]),
                "hours": _hours(group),
                "shards": shards[split],
            }
            for split, group in split_tracks.items()
        },
        "sample_rates_hz": _by(tracks, "sample_rate_hz"),
        "channel_counts": _by(tracks, "channels"),
        "licences": _by(tracks, "licence"),
        "domains": _by(tracks, "domain"),
        "full_band": _by(tracks, "full_band"),
        "loudness_lufs": _histogram([track["lufs"] for track in tracks], 3),
        "bandwidth_khz": _histogram([track["bandwidth_hz"] / 1000 for track in tracks], 1),
        "clipped_share": sum(track["clipped_share"] * track["seconds"] for track in tracks)
        / sum(track["seconds"] for track in tracks),
        "left_out": left_out,
        "other_files": others,
        "notes": notes,
    }


def _write_tfds_metadata(output, shards):
    import tensorflow_datasets as tfds  # seconds to import, needed here alone

    files = [shard["file"] for of_split in shards.values() for shard in of_split]
    sizes = dict(zip(files, storage.for_each(storage.size, [os.path.join(output, file) for file in files])))
    # TFDS knows fewer kinds of buckets: it writes where empty files have the names of the shards.
    with tempfile.TemporaryDirectory() as folder:
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=records.NAME, filetype_suffix="array_record", template=TEMPLATE
        )
        splits = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard["records"] for shard in of_split],
                filename_template=template,
                num_bytes=sum(sizes[shard["file"]] for shard in of_split),
            )
            for split, of_split in shards.items()
            if of_split
        ]
        for file in files:
            open(os.path.join(folder, file), "wb").close()
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=tf_example.tfds_features(),
            split_infos=splits,
            filename_template=template,
            description="Music as short records of int16 samples.",
            check_data=False,
        )
        for name in TFDS_METADATA:
            storage.write_text(os.path.join(output, name), storage.read_text(os.path.join(folder, name)))


def finish(output, folder, lines, splits, left_out, others, notes, settings):
    """Every step can be repeated, so an interruption in here costs nothing. -> the manifest."""
    shards = {split: [] for split in splits}
    full = [(line, split) for line, split in zip(lines, splits) if line["records"]]
    totals, moves = Counter(split for _, split in full), {}
    for line, split in full:
        name = f"{records.NAME}-{split}.array_record-{len(shards[split]):05d}-of-{totals[split]:05d}"
        moves[prepare_shards.shard_path(folder, line["task"])] = os.path.join(output, name)
        shards[split].append({"file": name, "records": line["records"]})
    there = set(storage.names(folder))  # the rest has been moved before an interruption
    storage.for_each(
        lambda path: storage.move(path, moves[path]), [path for path in moves if os.path.basename(path) in there]
    )
    storage.write_text(
        os.path.join(output, records.TRACKS),
        "".join(json.dumps(track) + "\n" for line in lines for track in line["tracks"]),
    )
    _write_tfds_metadata(output, shards)
    result = manifest(lines, splits, shards, left_out, others, notes, settings)
    storage.write_text(os.path.join(output, records.MANIFEST), json.dumps(result, indent=1))
    storage.remove(folder)
    return result
