"""Folders that hold models: runs as training leaves them, and exports, which bundle the stages of a codec.

RUN     config.json  checkpoints/STEP/  metrics.jsonl  ...       one stage: RUN means its latest checkpoint, and
                                                                 RUN/checkpoints/STEP means that one
EXPORT  config.json  model.safetensors  README.md                a tokenizer, perhaps a vocoder and a language model;
                                                                 or an imported vocoder alone
"""

from collections.abc import Callable, Collection, Mapping
import json
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.component import STAGE_OF_TASK, Stage, fresh
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.codecs.waveform import SoundCodec
from bandtok_jax.config.load import load_config
from bandtok_jax.config.schema import DTYPES
from bandtok_jax.config.stored import from_json, read_config
from bandtok_jax.config.validate import check_seed
from bandtok_jax.formats import safetensors
from bandtok_jax.pretrained import model_card
from bandtok_jax.runs.metrics import read_metrics
from bandtok_jax.runtime import untrusted

EXPORT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
_CURE = "copy it again from its run or export, or upgrade bandtok-jax"
_CARD = {
    "scores": untrusted.mapping(untrusted.optional(untrusted.number()), most=1000, keys=untrusted.text(100)),
    "data": untrusted.listing(untrusted.text(2000), most=1000),
}
_STAGE = {
    "config": untrusted.mapping(untrusted.anything),
    "weight_hash": untrusted.text(64, "[0-9a-f]{64}"),
    "step": untrusted.whole(),
    "tokenizer_hash": untrusted.text(64, "[0-9a-f]*"),
    "card": untrusted.record(_CARD),
}
_EXPORT = untrusted.record(
    {
        "export_version": untrusted.whole(1, EXPORT_VERSION),
        "weight_hash": untrusted.text(64, "[0-9a-f]{64}"),
        "stages": untrusted.mapping(
            untrusted.record(_STAGE, others=None), most=3, keys=untrusted.one_of(*STAGE_OF_TASK.values())
        ),
    }
)
# The vocoder that goes with each tokenizer's config when both are made from nothing, where it needs one.
VOCODER_OF = {"bandtok": "vocos", "dac": None}
WITHOUT_VOCODER = ("bandtok:tiny_24khz",)  # for imported ones


def load(
    path: str,
    vocoder: str | None = None,
    language_model: str | None = None,
    dtype: str = "",
    *,
    only: Collection[str] | None = None,
) -> Codec:
    """A trained codec.

    Args:
      path: run folder of a tokenizer, or an export folder.
      vocoder: run or export folder; in place of the one in `path`, if that has one.
      language_model: run or export folder; likewise.
      dtype: that vocoder and language model compute in; see `Stage.computed_in`.
      only: names of the components to load from `path`, such as ("tokenizer",) for encoding; all by default.

    Raises:
      ValueError: a folder or file is missing, holds another model or size, or the stages do not belong together.
    """
    if dtype not in ("", *DTYPES):
        raise ValueError(f"dtype is {dtype!r}: give one of {', '.join(DTYPES)}")
    stages = read_stages(path, dtype, only)
    if "tokenizer" not in stages:
        raise ValueError(
            f"{path} holds a {_list(stages)}, no tokenizer: pass the tokenizer's folder, and this one beside it"
        )
    for name, folder in (("vocoder", vocoder), ("language_model", language_model)):
        if folder:
            found = read_stages(folder, dtype)
            if name not in found:
                raise ValueError(f"{folder} holds a {_list(found)}, no {name.replace('_', ' ')}: pass another folder")
            stages[name] = found[name]
    codec = join(stages)
    for name, stage in stages.items():
        if stage.tokenizer_hash and stage.tokenizer_hash != codec.weight_hash:
            raise ValueError(
                f"{stage.origin}: this {name.replace('_', ' ')} was trained on the tokenizer "
                f"{stage.tokenizer_hash[:12]}, "
                f"{stages['tokenizer'].origin} is {codec.weight_hash[:12]}: load it with its own tokenizer"
            )
    return codec


def join(stages: dict[str, Stage]) -> Codec:
    """The codec that these stages make, by what its tokenizer was trained for.

    Raises:
      ValueError: the stages do not belong together.
    """
    stages = dict(stages)
    if stages["tokenizer"].config.task != "waveform_codec":
        return MelCodec(**stages)
    if "vocoder" in stages:
        raise ValueError(
            f"{stages['tokenizer'].origin} makes sound itself and has no use for the vocoder "
            f"{stages['vocoder'].origin}: load it without one"
        )
    return SoundCodec(**stages)


def create(name: str, seed: int = 0) -> Codec:
    """A codec with random weights.

    Args:
      name: of a tokenizer's config with its variant, such as "bandtok:tiny".
      seed: of the weights, from 0 to 2**32 - 1.

    Raises:
      ValueError: there is no such config, or the seed is another.
    """
    check_seed(seed)
    system, _, variant = name.partition(":")
    if system not in VOCODER_OF:
        raise ValueError(f"{name!r} names no codec: the known ones are {', '.join(VOCODER_OF)}, as in 'bandtok:tiny'")
    keys = jax.random.split(jax.random.key(seed))
    vocoder = None if name in WITHOUT_VOCODER else VOCODER_OF[system]
    parts = [part for part in (system, vocoder) if part]
    stages = [fresh(load_config(f"{part}:{variant or 'tiny'}"), key) for part, key in zip(parts, keys)]
    return join({stage.name: stage for stage in stages})


def read_stages(path: str, dtype: str = "", only: Collection[str] | None = None) -> dict[str, Stage]:
    """Returns the stages of a run or export folder by name, checked against their configs; arguments as for `load`."""
    path, step = split_step(path)
    config_file = os.path.join(path, "config.json")
    if not os.path.isdir(path):
        raise ValueError(f"{path}: no such folder; pass what `bandtok train` or `bandtok export` wrote")
    if not os.path.isfile(config_file):
        raise ValueError(f"{path} holds no config.json: pass a run folder or an export folder")
    content = untrusted.read_json(config_file, untrusted.mapping(untrusted.anything), cure=_CURE)
    is_export = "stages" in content
    run = None if is_export else _read_run(path, step, dtype)  # its errors name the files of the run
    with untrusted.reading(config_file, _CURE):
        stages = _read_export(path, content, dtype, only) if is_export else [run.check()]
    return {stage.name: stage for stage in stages}


def export(run: str, *, vocoder: str | None = None, language_model: str | None = None, output: str) -> Codec:
    """Bundles the stages of a codec into one folder that `load` reads, with a model card; returns the codec.

    Args:
      run, vocoder, language_model: as for `load`.
      output: a folder that does not exist yet, is empty, or holds an earlier export.
    """
    codec = load(run, vocoder, language_model)
    save(codec, output)
    return codec


def save(codec: Codec, output: str) -> None:
    """Writes a codec as an export folder; see `export`."""
    _write_export(codec.stages, lambda cards: model_card.write(codec, cards), output)


def save_vocoder(stage: Stage, output: str) -> None:
    """Writes a vocoder alone as an export folder, for `load(TOKENIZER, vocoder=output)`; `output` as for `export`."""
    _write_export({stage.name: stage}, lambda cards: model_card.write_vocoder(stage, cards), output)


def _write_export(stages: Mapping[str, Stage], write_card: Callable[[Mapping[str, Any]], str], output: str) -> None:
    if os.path.isdir(output) and os.listdir(output) and not _is_export(output):
        raise ValueError(f"{output} is not empty and holds no export of bandtok: choose a new folder")
    os.makedirs(output, exist_ok=True)
    cards = {
        name: dict(stage.card) or {"scores": _last_scores(stage), "data": model_card.describe_data(stage.config)}
        for name, stage in stages.items()
    }
    weights = {name: jax.tree.map(np.asarray, dict(stage.weights)) for name, stage in stages.items()}
    hashes = {name: safetensors.weight_hash(tree) for name, tree in weights.items()}
    # Codes belong to the tokenizer, which comes first; a vocoder alone stands for itself.
    content = {"export_version": EXPORT_VERSION, "weight_hash": next(iter(hashes.values())), "stages": {}}
    for name, stage in stages.items():
        facts = {"step": stage.step, "tokenizer_hash": stage.tokenizer_hash, "card": cards[name]}
        content["stages"][name] = {"config": _portable(stage.config), "weight_hash": hashes[name], **facts}
    safetensors.save(os.path.join(output, WEIGHTS_FILE), weights, {"format": "bandtok-jax"})
    texts = {"config.json": json.dumps(content, indent=2) + "\n", "README.md": write_card(cards)}
    for name, text in texts.items():
        with open(os.path.join(output, name), "w") as file:
            file.write(text)


def _portable(config: ConfigDict) -> dict:
    """The configuration of a stage without the folders of the machine that trained it: of paths, the last names."""
    from bandtok_jax.data_pipelines import sources  # not needed to load a model

    config = config.copy_and_resolve_references().unlock()
    last = lambda path: os.path.basename(os.path.normpath(path)) if path else ""
    for group, key in ((config, "tokenizer"), (config, "vocoder"), (config.data, "tokens")):
        if key in group:
            group[key] = last(group[key])
    if config.data.get("sources"):
        weighted = sources.parse_weights(config.data.sources)
        config.data.sources = ",".join(
            last(path) + (f"={weight:g}" if weight != 1 else "") for path, weight in weighted
        )
    return config.to_dict()


def _is_export(path: str) -> bool:
    """Whether the folder holds what `_write_export` wrote: others have a model.safetensors and a config.json, too."""
    files = [os.path.join(path, name) for name in ("config.json", WEIGHTS_FILE)]
    if not all(map(os.path.isfile, files)):
        return False
    try:
        untrusted.read_json(files[0], untrusted.record({"export_version": untrusted.whole()}))
    except ValueError:
        return False
    return True


def _read_export(path: str, content: dict, dtype: str, only: Collection[str] | None) -> list[Stage]:
    """The stages of an export, checked.

    Raises:
      ValueError: its config describes no model of this version, or its weights are not those that were exported.
    """
    version = content.get("export_version", 0)
    if isinstance(version, int) and version > EXPORT_VERSION:
        raise ValueError(f"it is of an export of version {version}: upgrade bandtok-jax")
    _EXPORT(content, "")
    weights_file = os.path.join(path, WEIGHTS_FILE)
    if not os.path.isfile(weights_file):
        raise untrusted.refusal(path, f"it holds no {WEIGHTS_FILE}", "export it again")
    weights = safetensors.load(weights_file)
    stages = []
    present = content["stages"].keys()
    chosen = present & set(only) if only else present
    for name, facts in content["stages"].items():
        if name not in (chosen or present):  # where none is present, the caller's error lists the others
            continue
        spoken = name.replace("_", " ")
        if not isinstance(weights.get(name), dict):
            raise untrusted.refusal(weights_file, f"it holds no weights of the {spoken}", "export it again")
        facts = dict(facts)
        config, expected = from_json(facts.pop("config")), facts.pop("weight_hash")
        stage = Stage(config, {"parameters": {}, "buffers": {}} | weights[name], origin=path, dtype=dtype, **facts)
        if stage.name != name:
            raise ValueError(f"it calls a {stage.name} {name}")
        if stage.check().weight_hash != expected:
            raise untrusted.refusal(
                weights_file,
                f"the weights of the {spoken} are not those that were exported",
                "the file is damaged or of another export; copy the folder again",
            )
        stages.append(stage)
    return stages


def split_step(path: str) -> tuple[str, int | None]:
    """`RUN/checkpoints/STEP` -> the run, "." where that is left out, and the step; any other folder as it is."""
    path = os.fspath(path)
    folder, step = os.path.split(path.rstrip(os.sep))
    run, checkpoints = os.path.split(folder)
    return (run or ".", int(step)) if checkpoints == "checkpoints" and step.isdigit() else (path, None)


def _read_run(path: str, step: int | None, dtype: str) -> Stage:
    from bandtok_jax.runs.weights import load_weights

    config = read_config(path)
    weights = load_weights(path, step)
    return Stage(
        config,
        weights["model"],
        origin=path,
        step=int(weights.get("step", 0)),
        tokenizer_hash=config.get("tokenizer_hash", ""),
        dtype=dtype,
    )


def _last_scores(stage: Stage) -> dict[str, float]:
    """The last value of every `evaluation/...` metric of a run up to the step of its stage."""
    scores: dict[str, float] = {}
    for line in read_metrics(split_step(stage.origin)[0]):
        if line["step"] <= stage.step:
            scores |= {k.removeprefix("evaluation/"): v for k, v in line.items() if k.startswith("evaluation/")}
    return scores


def _list(stages: dict[str, Stage]) -> str:
    return " and a ".join(name.replace("_", " ") for name in stages)
