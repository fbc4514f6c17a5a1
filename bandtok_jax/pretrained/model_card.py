"""The README.md of an export, written from the records of its runs alone."""

from collections.abc import Mapping
import dataclasses
import os
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.pretrained import front_matter
from bandtok_jax.version import VERSION

if TYPE_CHECKING:
    from bandtok_jax.codecs.codec import Codec
    from bandtok_jax.codecs.component import Component

_MANIFEST = "manifest.json"
_TOKEN_MANIFEST = "token_manifest.json"


def codec_card(codec: "Codec", cards: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the card of a codec in Markdown.

    Args:
      cards: `scores`, `data` and perhaps `licence` of every component by its role.
    """
    systems = ", ".join(name.replace("_", " ") for name in codec.components)
    table = {
        "sample rate": f"{codec.sample_rate_hz} Hz, {codec.channels} channel{'s' * (codec.channels > 1)}",
        "grid": f"{codec.rows} rows ({codec.row_kind}s), {codec.columns_per_second:.3f} columns per second",
        "codebook": f"{codec.codebook_size} codes",
        "rate": f"{codec.bits_per_second / 1000:.2f} kbit/s",
        "weight hash of the tokenizer": f"`{codec.weight_hash}`",
    }
    python = [
        'codec = bandtok_jax.load("this folder")',
        "codes = codec.encode(audio, sample_rate_hz)  # float32 [S] or [C, S] -> int32 [T, F]",
    ]
    python += ["audio = codec.decode(codes)"] * codec.can_decode
    shell = ["bandtok encode song.flac --model='this folder' -o song.bt"]
    shell += ["bandtok decode song.bt --model='this folder' -o song.wav"] * codec.can_decode
    shell += ["bandtok generate --model='this folder' --prompt '...' -o new.wav"] * (
        "language_model" in codec.components
    )
    title = f"{codec.rows} x {codec.columns_per_second:.2f} tokens per second: {systems}"
    return _card(title, table, codec.components, cards, python, shell)


def parts_card(parts: Mapping[str, "Component"], cards: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the card of components without a tokenizer, by their roles; `cards` as for `codec_card`."""
    first, python, shell = next(iter(parts.values())), [], []
    mel = {f"mel: {name}": value for name, value in dataclasses.asdict(first.mel).items()}
    for role in parts:
        if role == "vocoder":
            python = ['codec = bandtok_jax.load("a tokenizer of the same mel", vocoder="this folder")']
            shell += [
                "bandtok decode song.bt --model='a tokenizer of the same mel' --vocoder='this folder' -o song.wav"
            ]
        else:
            shell += [f"bandtok train --config='one that needs it' --config.{role}='this folder' --workdir=RUN"]
    table = {**mel, **{f"weight hash of the {role}": f"`{part.weight_hash}`" for role, part in parts.items()}}
    title = " and ".join(parts).capitalize()
    return _card(f"{title} of {first.mel.mels} mel bands", table, parts, cards, python, shell)


def _card(
    title: str,
    table: Mapping[str, Any],
    components: Mapping[str, "Component"],
    cards: Mapping[str, Mapping[str, Any]],
    python: list[str],
    shell: list[str],
) -> str:
    lines = [*front_matter.lines(components, cards), f"# {title}", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in table.items())]
    lines += [f"| exported with | bandtok-jax {VERSION} |", "", "## Components", ""]
    lines += ["| component | weights | licence | training steps | seed, data hash | last evaluation |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, component in components.items():
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(component.weights["parameters"]))
        scores = {k: v for k, v in cards[name]["scores"].items() if v is not None and "/" not in k}
        recorded = ", ".join(f"{k} {v:.4g}" for k, v in scores.items()) or "not recorded"
        licence = cards[name].get("licence", "not stated")
        data_hash = component.config.get("data_hash", "")
        origin = f"{component.config.seed}, `{data_hash[:16]}`" if data_hash else "not recorded"
        lines.append(
            f"| {name.replace('_', ' ')} | {size / 1e6:.2f} M | {licence} | {component.step} | {origin} | {recorded} |"
        )
    lines += ["", "## Data", ""]
    for name in components:
        lines += [f"- {name.replace('_', ' ')}: {line}" for line in cards[name]["data"] or ["not recorded"]]
    lines += [
        "",
        "If you pass these weights on, you are responsible for the licences of the music they were trained on.",
        "",
    ]
    lines += ["## Use", ""]
    lines += ["```python", "import bandtok_jax", "", *python, "```", ""] if python else []
    return "\n".join([*lines, "```bash", *shell, "```", ""])


def describe_data(config: ConfigDict) -> list[str]:
    """Returns one line for every source of an experiment, with its size and licences."""
    if config.data.tokens:
        return [_describe_tokens(config.data.tokens)]
    from bandtok_jax.data_pipelines import sources  # not needed to load a model

    return [_describe_source(folder) for folder, _ in sources.parse_weights(config.data.sources)]


def _describe_source(folder: str) -> str:
    if folder == "synthetic":
        return "the embedded synthetic music, which needs no licence"
    name, manifest = os.path.basename(os.path.normpath(folder)), _read_manifest(os.path.join(folder, _MANIFEST))
    if not manifest:
        return f"{name}, whose manifest could not be read when this was exported"
    train = manifest["splits"].get("train", {"tracks": 0, "hours": 0.0})
    licences = ", ".join(f"{licence} ({group['tracks']} tracks)" for licence, group in manifest["licences"].items())
    return f"{name}: {train['tracks']} training tracks, {train['hours']:.2f} h; licences of all tracks: {licences}"


def _describe_tokens(folder: str) -> str:
    manifest = _read_manifest(os.path.join(folder, _TOKEN_MANIFEST))
    if not manifest:
        return "token records, whose manifest could not be read when this was exported"
    train = manifest["splits"].get("train", {"records": 0, "columns": 0})
    hours = train["columns"] / manifest["columns_per_second"] / 3600
    origin = _describe_source(manifest["data"]) if "data" in manifest else "data that is not recorded"
    return f"tokens of {train['records']} records, {hours:.2f} h with all shifted copies, from {origin}"


def _read_manifest(path: str) -> dict:
    """Returns a manifest, empty where it is missing or damaged, which does not keep the weights from being exported."""
    if not os.path.isfile(path):
        return {}
    from bandtok_jax.data_pipelines import records, token_manifest

    folder, name = os.path.split(path)
    try:
        return records.read_manifest(folder) if name == _MANIFEST else token_manifest.read_token_manifest(folder)
    except (ValueError, OSError):
        return {}
