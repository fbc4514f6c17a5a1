"""Inspection of a prepared folder (`bandtok doctor --data DIR`): every record is read once and checked."""

from collections import Counter
import math
import os
import shlex
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
import numpy as np
from tqdm import tqdm

from bandtok_jax.data_pipelines import metadata, records, shards, tf_example
from bandtok_jax.data_pipelines.measurement import CLIPPED_LEVEL, SILENCE_PEAK
from bandtok_jax.runtime import storage, untrusted
from bandtok_jax.runtime.progress import progress_bar


def _check_shard(directory: str, shard: dict[str, Any], bar: tqdm) -> dict[str, int]:
    """Reads a shard with ArrayRecord's own reader, which verifies every checksum, and returns counts over its records.

    Args:
      bar: advances by one with every record.
    """
    path = os.path.join(directory, shard["file"])
    if not storage.exists(path):
        raise FileNotFoundError(f"{path} is missing, though the manifest names it; {records.REMAKE}")
    counts = {"records": 0, "samples": 0, "values": 0, "clipped": 0, "silent_records": 0}
    try:
        with storage.local_copy(path) as local:
            # Checks the layout, which the library would trust.
            shards.ShardReader(local, shard["records"], records.REMAKE)
            reader = ArrayRecordReader(local)
            for number in range(shard["records"]):
                data = reader.read([number])[0]
                record, shape, begin = tf_example.decode_head(data)
                audio = np.abs(np.frombuffer(data, "<i2", offset=begin).astype(np.int32))
                if audio.size != math.prod(shape):
                    raise ValueError(f"record {number} has {audio.size} samples, not those of its shape {shape}")
                counts["records"] += 1
                counts["samples"] += shape[0]
                counts["values"] += audio.size
                counts["clipped"] += int(np.count_nonzero(audio >= CLIPPED_LEVEL * 32_768))
                counts["silent_records"] += bool(audio.max() < SILENCE_PEAK * 32_768)
                bar.update()
            reader.close()
    except (*shards.DAMAGE, RuntimeError) as error:
        shards.check_system(error, path)
        reason = error.args[1] if isinstance(error, shards.DamagedShard) else next(iter(str(error).splitlines()), "")
        raise shards.DamagedShard(path, untrusted.printable(reason, 120), records.REMAKE) from None
    return counts


def _check_splits(directory: str, splits: dict[str, Any]) -> dict[str, list[dict[str, int]]]:
    """Returns {split: [result of `_check_shard`]}, with a progress bar."""
    total = sum(split["records"] for split in splits.values())
    with progress_bar(total=total, unit="record", unit_scale=True, desc="read", leave=False) as bar:
        return {
            name: [_check_shard(directory, shard, bar) for shard in split["shards"]] for name, split in splits.items()
        }


def inspect(directory: str | os.PathLike, clip_samples: int = 65_536, channels: int = 1) -> dict[str, Any]:
    """Returns the manifest with the results of reading every record and the properties of a crop.

    Args:
      clip_samples, channels: length of the crop, at the rate of the records, and its channels.

    Raises:
      FileNotFoundError, ValueError: missing, empty or damaged data, or a crop of no samples; with the cure.
    """
    directory = os.fspath(directory)
    if clip_samples < 1:
        raise ValueError(f"a crop of {clip_samples} samples: give at least 1")
    manifest = records.read_manifest(directory)
    if not any(split["records"] for split in manifest["splits"].values()):
        raise ValueError(
            f"{directory} is empty; make it again with  bandtok prepare MUSIC --overwrite --output "
            f"{shlex.quote(directory)}"
        )
    tracks = list(records.read_track_list(directory, manifest))
    domain_records, read = Counter(), {}
    for track in tracks:
        if track["split"] == "train":
            domain_records[track["domain"] or metadata.UNKNOWN] += track["records"]
    for name, counts in _check_splits(directory, manifest["splits"]).items():
        total = {key: sum(count[key] for count in counts) for key in counts[0]} if counts else {}
        read[name] = {
            "records": total.get("records", 0),
            "silent_records": total.get("silent_records", 0),
            "clipped_share": total["clipped"] / total["values"] if counts else 0.0,
            "crops_without_overlap": total.get("samples", 0) // clip_samples,
        }
    lufs = [track["lufs"] for track in tracks]
    shortest = min(track["seconds"] for track in tracks)
    return {
        **{key: value for key, value in manifest.items() if key not in ("fingerprint", "version")},
        "read": read,
        "domain_shares": {domain: count / domain_records.total() for domain, count in sorted(domain_records.items())},
        "lufs_range": [min(lufs), float(np.median(lufs)), max(lufs)],
        "crop": {
            "samples": clip_samples,
            "channels": channels,
            "seconds": clip_samples / manifest["sample_rate_hz"],
            "sample_rate_hz": manifest["sample_rate_hz"],
            "shortest_track_seconds": shortest,
            "padded_share": records.short_record_share(
                tracks, manifest["clip_seconds"], clip_samples / manifest["sample_rate_hz"]
            ),
        },
    }


def _groups_line(groups: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{value}: {group['tracks']} tracks, {group['hours']:.2f} h" for value, group in groups.items())


def _share_lines(domains: dict[str, float]) -> list[str]:
    """Returns the line with each domain's share of the training examples, where there are several."""
    if len(domains) < 2:
        return []
    shares = ", ".join(f"{domain} {share:.1%}" for domain, share in domains.items())
    return [
        f"{'':<12}of the training examples: {shares}; with config.data.balance_domains {1 / len(domains):.1%} of each"
    ]


def report(result: dict[str, Any]) -> str:
    """Returns the result of `inspect` as text for the user."""
    lines = []
    for name, split in result["splits"].items():
        read = result["read"][name]
        lines.append(
            f"{name:<12}{split['tracks']} tracks, {split['hours']:.2f} h, {split['records']} records "
            f"in {len(split['shards'])} shards, all readable; {read['silent_records']} silent, "
            f"{read['clipped_share']:.4%} of the samples clipped, {read['crops_without_overlap']} crops side by side"
        )
    crop, (quiet, median, loud) = result["crop"], result["lufs_range"]
    lines += [
        f"{'crop':<12}{crop['samples']} samples at {crop['sample_rate_hz']} Hz, {crop['seconds']:.2f} s, "
        f"{'stereo' if crop['channels'] == 2 else 'mono'}, from records of {result['clip_seconds']:g} s"
        + (
            f"; {crop['padded_share']:.1%} of the records are shorter and end in silence (the shortest track has "
            f"{crop['shortest_track_seconds']:.1f} s)"
            + (": prepare them with a larger --clip-seconds" if crop["seconds"] > result["clip_seconds"] else "")
            if crop["padded_share"]
            else ""
        ),
        f"{'files':<12}" + _groups_line({f"{rate} Hz": group for rate, group in result["sample_rates_hz"].items()}),
        f"{'channels':<12}" + _groups_line(result["channel_counts"]),
        f"{'loudness':<12}{quiet:.1f} to {loud:.1f} LUFS, median {median:.1f}; tracks from each level up: "
        + ", ".join(f"{edge}: {count}" for edge, count in result["loudness_lufs"].items()),
        f"{'bandwidth':<12}tracks by kHz: "
        + ", ".join(f"{edge}: {count}" for edge, count in result["bandwidth_khz"].items())
        + f"; full band: {result['full_band'].get('True', {}).get('hours', 0):.2f} h",
        f"{'domains':<12}" + _groups_line(result["domains"]),
        *_share_lines(result["domain_shares"]),
        f"{'licences':<12}" + _groups_line(result["licences"]),
    ]
    if sung := result.get("lyrics", {}).get("True"):
        lines.append(f"{'lyrics':<12}{sung['tracks']} tracks, {sung['hours']:.2f} h")
    lines += [f"{'left out':<12}{len(result['left_out'])} files"] + [
        f"{'':<12}{entry['track']}: {entry['reason']}" for entry in result["left_out"]
    ]
    if result["other_files"]:
        lines.append(
            f"{'not music':<12}" + ", ".join(f"{count} x {ending}" for ending, count in result["other_files"].items())
        )
    lines += [f"{'note':<12}{note}" for note in result["notes"]]
    return "\n".join(map(untrusted.printable, lines))  # names and reasons may hold control characters
