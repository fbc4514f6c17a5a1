"""The end of `bandtok prepare`: shards get their final names, TFDS its metadata, and the manifest says what there
is and what was left out.
"""

from collections import Counter
import glob
import json
import os
import shutil

from bandtok_jax.data_pipelines import examples, records

TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def remove(output):
    """Deletes a prepared data set and nothing else; the manifest first, so that no half of it passes for whole."""
    for pattern in (
        records.MANIFEST,
        records.TRACKS,
        "dataset_info.json",
        "features.json",
        f"{records.NAME}-*.array_record-*",
    ):
        for path in glob.glob(os.path.join(glob.escape(output), pattern)):
            os.remove(path)


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
        groups.setdefault(str(track[name]) or "unknown", []).append(track)
    return {value: {"tracks": len(group), "hours": _hours(group)} for value, group in sorted(groups.items())}


def manifest(lines, splits, shards, left_out, others, validation_note, settings):
    tracks = [track for line in lines for track in line["tracks"]]
    split_tracks = {split: [track for track in tracks if track["split"] == split] for split in dict.fromkeys(splits)}
    notes = []
    if not split_tracks.get("validation"):
        notes.append(
            "no validation tracks: evaluation needs some; "
            "prepare again with more tracks, --tracks=CSV or a larger --validation-share"
        )
    elif validation_note:
        notes.append(validation_note)
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


def _write_json(path, content):
    with open(path + ".new", "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def _write_tfds_metadata(output, shards):
    import tensorflow_datasets as tfds  # seconds to import, needed here alone

    template = tfds.core.ShardedFileTemplate(
        data_dir=output, dataset_name=records.NAME, filetype_suffix="array_record", template=TEMPLATE
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["records"] for shard in of_split],
            filename_template=template,
            num_bytes=sum(os.path.getsize(os.path.join(output, shard["file"])) for shard in of_split),
        )
        for split, of_split in shards.items()
        if of_split
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=output,
        features=examples.tfds_features(),
        split_infos=splits,
        filename_template=template,
        description="Music as short records of int16 samples.",
        check_data=False,
    )


def finish(output, folder, lines, splits, left_out, others, validation_note, settings):
    """Every step can be repeated, so an interruption in here costs nothing. -> the manifest."""
    shards = {split: [] for split in splits}
    full = [(line, split) for line, split in zip(lines, splits) if line["records"]]
    totals = Counter(split for _, split in full)
    for line, split in full:
        name = f"{records.NAME}-{split}.array_record-{len(shards[split]):05d}-of-{totals[split]:05d}"
        part = os.path.join(folder, f"task-{line['task']:05d}.array_record")
        if os.path.exists(part):
            os.replace(part, os.path.join(output, name))
        shards[split].append({"file": name, "records": line["records"]})
    _write_json(
        os.path.join(output, records.TRACKS),
        "".join(json.dumps(track) + "\n" for line in lines for track in line["tracks"]),
    )
    _write_tfds_metadata(output, shards)
    result = manifest(lines, splits, shards, left_out, others, validation_note, settings)
    _write_json(os.path.join(output, records.MANIFEST), json.dumps(result, indent=1))
    shutil.rmtree(folder)
    return result
