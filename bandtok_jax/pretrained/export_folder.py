"""Export folders: the components of a codec in one folder, to be loaded and passed on.

EXPORT  config.json  model.safetensors  README.md    a tokenizer, perhaps a vocoder and a language model; or a vocoder
                                                     alone

It is a model repository of the Hugging Face hub as it is; see `hub`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
import dataclasses
import json
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.component import Component
from bandtok_jax.config.stored import from_json
from bandtok_jax.formats import safetensors
from bandtok_jax.models import registry
from bandtok_jax.pretrained import front_matter, hub, model_card
from bandtok_jax.runs.metrics import read_metrics
from bandtok_jax.runtime import expect, untrusted

EXPORT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_CARD = {
    "scores": expect.mapping(expect.optional(expect.number()), most=1000, keys=expect.text(100)),
    "data": expect.listing(expect.text(2000), most=1000),
    "licence?": expect.text(61, hub.LICENCE),
}
_COMPONENT = {
    "config": expect.mapping(expect.anything),
    "weight_hash": expect.text(64, "[0-9a-f]{64}"),
    "step": expect.whole(),
    "tokenizer_hash": expect.text(64, "[0-9a-f]*"),
    "card": expect.record(_CARD),
}
_EXPORT = expect.record(
    {
        "export_version": expect.whole(1, EXPORT_VERSION),
        "weight_hash": expect.text(64, "[0-9a-f]{64}"),
        "components": expect.mapping(
            expect.record(_COMPONENT, others=None), most=len(registry.ROLES), keys=expect.one_of(*registry.ROLES)
        ),
    }
)


def save_codec(codec: Codec, output: str | os.PathLike, half: bool = False, licence: str = "") -> None:
    """Writes a codec as an export folder.

    Args:
      output: a folder that does not exist yet, is empty, or holds an earlier export.
      half: store the weights in float16 that it represents exactly, see `half_precision`.
      licence: see `model_folder.export`.

    Raises:
      ValueError: the folder holds something else, or a component has another licence.
    """
    _write_export(codec.components, lambda cards: model_card.codec_card(codec, cards), output, half, licence)


def half_precision(component: Component) -> Component:
    """Returns a component whose float32 weights are rounded to float16, and still float32.

    Arrays with values beyond the range of float16 are kept.
    """
    return dataclasses.replace(component, weights=jax.tree.map(_rounded, _arrays(component)))


def is_half(component: Component) -> bool:
    """Returns whether `half_precision` changes no weight, as that of an export in float16."""
    return all(np.array_equal(_rounded(leaf), leaf) for leaf in jax.tree.leaves(_arrays(component)))


def save_parts(parts: Mapping[str, Component], output: str | os.PathLike) -> None:
    """Writes components without a tokenizer, by their roles, as an export folder; see `save_codec`.

    `load(TOKENIZER, vocoder=output)` reads a vocoder of it, and a training reads an encoder or autoencoder.
    """
    _write_export(parts, lambda cards: model_card.parts_card(parts, cards), output)


def _write_export(
    components: Mapping[str, Component],
    write_card: Callable[[Mapping[str, Any]], str],
    output: str | os.PathLike,
    half: bool = False,
    licence: str = "",
) -> None:
    if os.path.isdir(output) and os.listdir(output) and not is_export(output):
        raise ValueError(f"{output} is not empty and holds no export of bandtok: choose a new folder")
    os.makedirs(output, exist_ok=True)
    cards = {
        role: dict(part.card) or {"scores": _last_scores(part), "data": model_card.describe_data(part.config)}
        for role, part in components.items()
    }
    for role, card in cards.items() if licence else ():
        front_matter.require_licence(role, card, licence)
        card["licence"] = licence
    weights = {role: _arrays(part) for role, part in components.items()}
    hashes = {role: safetensors.weight_hash(tree) for role, tree in weights.items()}
    # The hash of the tokenizer, which comes first, names the codes; a vocoder alone has its own.
    content = {"export_version": EXPORT_VERSION, "weight_hash": next(iter(hashes.values())), "components": {}}
    for role, part in components.items():
        content["components"][role] = {
            "config": _portable(part.config),
            "weight_hash": hashes[role],
            "step": part.step,
            "tokenizer_hash": part.tokenizer_hash,
            "card": cards[role],
        }
    stored = jax.tree.map(_to_half_if_exact, weights) if half else weights
    safetensors.save(os.path.join(output, WEIGHTS_FILE), stored, {"format": "bandtok-jax"})
    texts = {CONFIG_FILE: json.dumps(content, indent=2) + "\n", "README.md": write_card(cards)}
    for name, text in texts.items():
        with open(os.path.join(output, name), "w") as file:
            file.write(text)


def _arrays(component: Component) -> dict[str, Any]:
    return jax.tree.map(np.asarray, dict(component.weights))


def _to_half(array: np.ndarray) -> np.ndarray:
    """Returns a float32 array in float16 where its values are in the range of that; any other array as it is."""
    in_range = array.dtype == np.float32 and np.all(np.abs(array) <= np.finfo(np.float16).max)
    return array.astype(np.float16) if in_range else array


def _rounded(array: np.ndarray) -> np.ndarray:
    return _to_half(array).astype(array.dtype)


def _to_half_if_exact(array: np.ndarray) -> np.ndarray:
    half = _to_half(array)
    return half if np.array_equal(half.astype(array.dtype), array) else array


def _from_half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _portable(config: ConfigDict) -> dict[str, Any]:
    """Returns a configuration whose paths are cut to their last names, without folders of this machine."""
    from bandtok_jax.data_pipelines import sources  # not needed to load a model

    config = config.copy_and_resolve_references().unlock()
    for group, key in (*((config, role) for role in (*registry.ROLES, "base")), (config.data, "tokens")):
        if key in group:
            group[key] = _last_name(group[key])
    if config.data.get("sources"):
        weighted = sources.parse_weights(config.data.sources)
        config.data.sources = ",".join(
            _last_name(path) + (f"={weight:g}" if weight != 1 else "") for path, weight in weighted
        )
    return config.to_dict()


def _last_name(path: str) -> str:
    if hub.is_hub(path):
        return path  # the same on every machine
    return os.path.basename(os.path.normpath(path)) if path else ""


def _last_scores(component: Component) -> dict[str, float]:
    """Returns the last value of every `evaluation/...` metric of a run up to the step of its component."""
    scores: dict[str, float] = {}
    for line in read_metrics(split_step(component.source_path)[0]):
        if line["step"] <= component.step:
            scores |= {k.removeprefix("evaluation/"): v for k, v in line.items() if k.startswith("evaluation/")}
    return scores


def is_export(path: str | os.PathLike, with_weights: bool = True) -> bool:
    """Returns whether a folder is an export; other projects have a model.safetensors and a config.json, too.

    Args:
      with_weights: the folder must hold the weights, too.
    """
    files = [os.path.join(path, name) for name in (CONFIG_FILE, WEIGHTS_FILE)[: 1 + with_weights]]
    if not all(map(os.path.isfile, files)):
        return False
    try:
        untrusted.read_json(files[0], expect.record({"export_version": expect.whole()}))
    except ValueError:
        return False
    return True


def publish(folder: str | os.PathLike, name: str, private: bool = False) -> Iterator[str]:
    """Uploads an export to the hub, and yields lines about its licence, its data and its place there.

    Args:
      folder: an export.
      name: "OWNER/NAME" of the repository.
      private: see `hub.push`.

    Raises:
      ImportError, ValueError: as `hub.push`, or its licence does not allow it.
    """
    content = untrusted.read_json(os.path.join(folder, CONFIG_FILE), _EXPORT)
    cards = {role: entry["card"] for role, entry in content["components"].items()}
    yield f"licence of the weights: {front_matter.require_publishable(cards)}"
    for role, card in cards.items():
        yield from (f"data of the {role.replace('_', ' ')}: {line}" for line in card["data"] or ["not recorded"])
    repository = hub.push(folder, name, private)
    yield f"published{' for you alone' if private else ''}: --model={repository}"


def read_entries(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the entries of the components in config.json of an export, by their roles; no weights are read.

    Raises:
      ValueError: the content describes no model of this version.
    """
    version = content.get("export_version", 0)
    if isinstance(version, int) and version > EXPORT_VERSION:
        raise ValueError(f"it is of an export of version {version}: upgrade bandtok-jax")
    _EXPORT(content, "")
    return content["components"]


def read_export(
    path: str, content: Mapping[str, Any], dtype: str, only: Collection[str] | None = None
) -> list[Component]:
    """Returns the components of an export, checked against its config.json.

    Args:
      content: content of config.json.
      dtype: see `Component.compute_dtype`.
      only: roles of the components to read; all by default, and where the export has none of them.

    Raises:
      ValueError: config.json describes no model of this version, or the weights are not those that were exported.
    """
    available = read_entries(content)
    weights_file = os.path.join(path, WEIGHTS_FILE)
    if not os.path.isfile(weights_file):
        raise untrusted.refusal(path, f"it holds no {WEIGHTS_FILE}", "export it again")
    weights = safetensors.load(weights_file)
    components = []
    chosen = available.keys() & set(only or ()) or available.keys()
    for role, entry in available.items():
        if role not in chosen:
            continue
        words = role.replace("_", " ")
        if not isinstance(weights.get(role), dict):
            raise untrusted.refusal(weights_file, f"it holds no weights of the {words}", "export it again")
        component = Component(
            from_json(entry["config"]),
            {"parameters": {}, "buffers": {}} | jax.tree.map(_from_half, weights[role]),
            source_path=path,
            step=entry["step"],
            tokenizer_hash=entry["tokenizer_hash"],
            card=entry["card"],
            dtype=dtype,
        )
        if component.role != role:
            raise ValueError(f"components.{role} holds a {component.role.replace('_', ' ')}")
        if component.check().weight_hash != entry["weight_hash"]:
            raise untrusted.refusal(
                weights_file,
                f"the weights of the {words} are not those that were exported",
                "the file is damaged or of another export; copy the folder again",
            )
        components.append(component)
    return components


def split_step(path: str | os.PathLike) -> tuple[str, int | None]:
    """Splits `RUN/checkpoints/STEP` into the run, "." where that is left out, and the step; None for other folders."""
    path = os.fspath(path)
    folder, step = os.path.split(path.rstrip(os.sep))
    run, checkpoints = os.path.split(folder)
    return (run or ".", int(step)) if checkpoints == "checkpoints" and step.isdigit() else (path, None)
