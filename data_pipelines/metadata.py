"""The last step of `bandtok prepare`: final names of the shards, metadata for TFDS, the manifest."""

from collections import Counter
import json
import os
import re
import tempfile
from typing import Any

from bandtok_jax.data_pipelines import prepare_shards, records, tf_example
from bandtok_jax.runtime import folder_lock, storage, untrusted

TFDS_METADATA = ("dataset_info.json", "features.json")
PEAK_NOTE = 2.0  # a peak that a note reports; decoded MP3 often reaches 1.2; our choice
UNKNOWN = "unknown"  # a missing domain or licence
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def _shard_names(names: list[str]) -> list[str]:
    """Returns the names of shards of a prepared data set."""
    return [name for name in names if re.fullmatch(rf"{records.NAME}-\w+\.array_record-\d+-of-\d+", name)]


def refuse_foreign(output: str) -> None:
    """Raises ValueError where a folder holds files of the user alone."""
    names = [name for name in storage.names(output) if name != folder_lock.NAME]
    if names and records.WORKING_FOLDER not in names and not _shard_names(names):
        raise ValueError(
            f"{output} holds other files, such as {untrusted.printable(names[0], 60)}, and no records: "
            "give an empty or a new folder as --output"
        )


def remove_records(output: str) -> None:
    """Deletes a prepared data set and nothing else; the manifest first, so that no part of it looks complete."""
    storage.remove(os.path.join(output, records.MANIFEST))
    shards = _shard_names(storage.names(output))
    paths = [os.path.join(output, name) for name in (records.TRACKS, *TFDS_METADATA, *shards)]
    storage.map_parallel(storage.remove, paths)


def _histogram(values: list[float], width: float) -> dict[str, int]:
    """Returns {lower edge: tracks} in order."""
    counts = Counter(int(value // width * width) for value in values)
    return {str(edge): counts[edge] for edge in sorted(counts)}


def _hours(tracks: list[dict[str, Any]]) -> float:
    return round(sum(track["seconds"] for track in tracks) / 3600, 4)


def _by_field(tracks: list[dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    """Returns {value: {'tracks', 'hours'}} over one field of the tracks."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for track in tracks:
        groups.setdefault(str(track.get(name, "")) or UNKNOWN, []).append(track)
    return {value: {"tracks": len(group), "hours": _hours(group)} for value, group in sorted(groups.items())}


def build_manifest(
    reports: list[dict[str, Any]],
    splits: list[str],
    shards: dict[str, list[dict[str, Any]]],
    left_out: list[dict[str, str]],
    others: dict[str, int],
    notes: list[str],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Returns the manifest of a prepared folder.

    Args:
      reports: one for each task.
      splits: the split of each task, perhaps with a split that has no tracks.
      shards: {split: [{"file", "records"}]}.
      left_out: [{"track", "reason"}].
      others: {ending: count} of files that are no music.
      notes: for the user.
      settings: rate, channels and length of the records.
    """
    tracks = [track for report in reports for track in report["tracks"]]
    split_tracks = {split: [track for track in tracks if track["split"] == split] for split in dict.fromkeys(splits)}
    notes = list(notes)
    if clipped := [track for track in tracks if track["peak"] >= PEAK_NOTE]:
        worst = max(clipped, key=lambda track: track["peak"])
        notes.append(
            f"{len(clipped)} tracks are clipped in their records, the worst {worst['track']} with a peak of "
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
        "sample_rates_hz": _by_field(tracks, "sample_rate_hz"),
        "channel_counts": _by_field(tracks, "channels"),
        "licences": _by_field(tracks, "licence"),
        "domains": _by_field(tracks, "domain"),
        "full_band": _by_field(tracks, "full_band"),
        "lyrics": _by_field(tracks, "lyrics"),
        "loudness_lufs": _histogram([track["lufs"] for track in tracks], 3),
        "bandwidth_khz": _histogram([track["bandwidth_hz"] / 1000 for track in tracks], 1),
        "clipped_share": sum(track["clipped_share"] * track["seconds"] for track in tracks)
        / sum(track["seconds"] for track in tracks),
        "left_out": left_out,
        "other_files": others,
        "notes": notes,
    }


def _write_tfds_metadata(output: str, shards: dict[str, list[dict[str, Any]]]) -> None:
    """Writes the metadata by which TFDS reads the folder."""
    import tensorflow_datasets as tfds  # takes seconds, and is needed here alone

    files = [shard["file"] for split_shards in shards.values() for shard in split_shards]
    sizes = dict(zip(files, storage.map_parallel(storage.size, [os.path.join(output, file) for file in files])))
    # TFDS supports fewer kinds of buckets, so it writes into a local folder where empty files stand for the shards.
    with tempfile.TemporaryDirectory() as folder:
        template = tfds.core.ShardedFileTemplate(
            data_dir=tfds.core.Path(folder),
            dataset_name=records.NAME,
            filetype_suffix="array_record",
            template=TEMPLATE,
        )
        splits = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard["records"] for shard in split_shards],
                filename_template=template,
                num_bytes=sum(sizes[shard["file"]] for shard in split_shards),
            )
            for split, split_shards in shards.items()
            if split_shards
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


def write_metadata(
    output: str,
    folder: str,
    reports: list[dict[str, Any]],
    splits: list[str],
    left_out: list[dict[str, str]],
    others: dict[str, int],
    notes: list[str],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Moves the shards to their final names, writes all metadata, and returns the manifest.

    Every step can be repeated, so an interruption loses nothing. See `build_manifest` for the arguments.

    Args:
      folder: the working folder of the tasks.
    """
    shards: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    filled = [(report, split) for report, split in zip(reports, splits) if report["records"]]
    totals, moves = Counter(split for _, split in filled), {}
    for report, split in filled:
        name = f"{records.NAME}-{split}.array_record-{len(shards[split]):05d}-of-{totals[split]:05d}"
        moves[prepare_shards.shard_path(folder, report["task"])] = os.path.join(output, name)
        shards[split].append({"file": name, "records": report["records"]})
    unmoved = set(storage.names(folder))  # the others were moved before an interruption
    storage.map_parallel(
        lambda path: storage.move(path, moves[path]), [path for path in moves if os.path.basename(path) in unmoved]
    )
    storage.write_text(
        os.path.join(output, records.TRACKS),
        "".join(json.dumps(track) + "\n" for report in reports for track in report["tracks"]),
    )
    _write_tfds_metadata(output, shards)
    result = build_manifest(reports, splits, shards, left_out, others, notes, settings)
    storage.write_text(os.path.join(output, records.MANIFEST), json.dumps(result, indent=1))
    storage.remove(folder)
    return result
