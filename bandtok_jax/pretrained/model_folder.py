"""Codecs from folders: runs as training leaves them, and exports.

RUN     config.json  checkpoints/STEP/  metrics.jsonl  ...    one component: RUN means its latest checkpoint, and
                                                              RUN/checkpoints/STEP means that one; with adapters,
                                                              also the other components of their base
EXPORT  see `bandtok_jax.pretrained.export_folder`
hf://OWNER/NAME    an export on the Hugging Face hub, see `bandtok_jax.pretrained.hub`
default    the export that is installed with the package (a folder of that name is written  ./default)
"""

from collections.abc import Collection, Iterable
import os
from typing import Any

import jax
from ml_collections import ConfigDict

from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.component import Component, init_random
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.config import shipped
from bandtok_jax.config.load import load_config
from bandtok_jax.config.schema import DTYPES
from bandtok_jax.config.stored import from_json, read_config
from bandtok_jax.config.validate import check_seed
from bandtok_jax.pretrained import adapter_file, hub
from bandtok_jax.pretrained.export_folder import (
    CONFIG_FILE,
    half_precision,
    is_export,
    read_entries,
    read_export,
    save_codec,
    split_step,
)
from bandtok_jax.runtime import expect, extras, untrusted

DEFAULT = "default"
DEFAULT_FOLDER = os.path.join(os.path.dirname(__file__), "default")
_CURE = "copy it again from its run or export, or upgrade bandtok-jax"


def load(
    path: str | os.PathLike,
    vocoder: str | os.PathLike | None = None,
    language_model: str | os.PathLike | None = None,
    dtype: str = "",
    *,
    adapter: str | os.PathLike | None = None,
    only: Collection[str] | None = None,
) -> Codec:
    """Loads a trained codec.

    Args:
      path: run folder of a tokenizer, an export folder, `hf://OWNER/NAME@REVISION`, or "default".
      vocoder: run or export; in place of the one in `path`, if that has one.
      language_model: run or export; in place of the one in `path`, if that has one.
      dtype: dtype of vocoder and language model; see `Component.compute_dtype`.
      adapter: file of adapters that are added to the language model.
      only: roles of the components to load from `path`, such as ("tokenizer",) for encoding; all by default.

    Raises:
      ValueError: a folder or file is missing, holds another model or size, or the components do not belong together.
      ImportError: a path begins with hf://, and huggingface_hub is not installed; or it is a run, and orbax is not.
    """
    if dtype not in ("", *DTYPES):
        raise ValueError(f"dtype is {dtype!r}: give one of {', '.join(DTYPES)}")
    components = read_components(path, dtype, only)
    if "tokenizer" not in components:
        parts = [role for role in components if role in ("encoder", "autoencoder")]
        cure = (
            f"give it to the training of a tokenizer as --config.{parts[0]}, and pass that run"
            if parts
            else "pass the tokenizer's folder, and this one beside it"
        )
        raise ValueError(f"{path} holds {_list(components)}, no tokenizer: {cure}")
    for role, folder in (("vocoder", vocoder), ("language_model", language_model)):
        if folder:
            available = read_components(folder, dtype)
            if role not in available:
                raise ValueError(f"{folder} holds {_list(available)}, no {role.replace('_', ' ')}: pass another folder")
            components[role] = available[role]
    if adapter:
        if "language_model" not in components:
            raise ValueError(f"{path} holds {_list(components)}, no language model to adapt: give the one of {adapter}")
        components["language_model"] = adapter_file.add_adapters(components["language_model"], adapter)
    codec = assemble(components)
    for role, component in components.items():
        if component.tokenizer_hash and component.tokenizer_hash != codec.weight_hash:
            raise ValueError(
                f"{component.source_path}: this {role.replace('_', ' ')} was trained on the tokenizer "
                f"{component.tokenizer_hash[:12]}, {components['tokenizer'].source_path} is {codec.weight_hash[:12]}: "
                "load it with its own tokenizer"
            )
    return codec


def default_line(codec: Codec) -> str:
    """Returns the line of the verbs that use the default model."""
    return (
        f"the default model: {codec.rows} x {codec.columns_per_second:.2f} codes per second, "
        f"{codec.bits_per_second / 1000:.2f} kbit/s, weight hash {codec.weight_hash[:12]}"
    )


def create(name: str, seed: int = 0) -> Codec:
    """Returns a codec with random weights.

    Args:
      name: name of a tokenizer's configuration with its variant, such as "bandtok:tiny". Its file names the
        configuration of
        the vocoder that goes with each variant (`VOCODERS`), where it needs one.
      seed: seed of the weights, from 0 to 2**32 - 1.

    Raises:
      ValueError: there is no such configuration, it is none of a tokenizer, or the seed is out of range.
    """
    check_seed(seed)
    system, _, variant = name.partition(":")
    tokenizer = load_config(name)
    keys = jax.random.split(jax.random.key(seed))
    components = [init_random(tokenizer, keys[0])]
    if components[0].role != "tokenizer":
        raise ValueError(f"{name!r} is {_list([components[0].role])}: give a tokenizer, as 'bandtok:tiny'")
    if system in shipped.list_configs():
        vocoders = getattr(shipped.module(system), "VOCODERS", {})
        if vocoder := vocoders.get(variant or "tiny"):
            components.append(init_random(load_config(vocoder), keys[1]))
    return assemble({component.role: component for component in components})


def export(
    run: str | os.PathLike,
    *,
    vocoder: str | os.PathLike | None = None,
    language_model: str | os.PathLike | None = None,
    output: str | os.PathLike,
    half: bool = False,
    licence: str = "",
) -> Codec:
    """Writes the components of a codec to one folder that `load` reads, with a model card; returns the codec.

    Args:
      run, vocoder, language_model: as for `load`.
      output: a folder that does not exist yet, is empty, or holds an earlier export.
      half: round the weights to float16, which halves the file. The tokenizer then has another weight hash.
      licence: licence of the components without one, as the hub writes it, such as "cc-by-4.0".

    Raises:
      ValueError: as `load`, a component was trained on the tokenizer before its weights were rounded, or it has another
        licence.
    """
    codec = load(run, vocoder, language_model)
    if half:
        codec = assemble({role: half_precision(component) for role, component in codec.components.items()})
        for role, component in codec.components.items():
            if component.tokenizer_hash not in ("", codec.weight_hash):
                raise ValueError(
                    f"the {role.replace('_', ' ')} was trained on the tokenizer {component.tokenizer_hash[:12]}, which "
                    f"is {codec.weight_hash[:12]} in half precision: export the tokenizer alone with --half first, and "
                    "make the tokens by that export"
                )
    save_codec(codec, output, half, licence)
    return codec


def read_components(
    path: str | os.PathLike, dtype: str = "", only: Collection[str] | None = None
) -> dict[str, Component]:
    """Reads the components in a run or export, by their roles, each checked against its configuration.

    Args:
      path: a folder, or a repository whose files are downloaded.
      dtype, only: as for `load`.

    Raises:
      ValueError: a folder or file is missing, damaged, or holds another model or size.
    """
    _check_path(path)
    if hub.is_hub(path):
        return _read_repository(path, dtype, only)
    if path == DEFAULT:
        return _read_export_as(DEFAULT, DEFAULT_FOLDER, dtype, only)
    path, step = split_step(path)
    config_file, content = _read_content(path)
    run = None if "components" in content else _read_run(path, step, dtype)  # its errors name the files of the run
    others = {}
    if run and run.config.get("base"):
        others = read_components(run.config.base, dtype)
        run = adapter_file.merge_run(others["language_model"], run)
    with untrusted.reading(config_file, _CURE):
        components = read_export(path, content, dtype, only) if run is None else [run.check()]
    return others | {component.role: component for component in components}


def read_configs(path: str | os.PathLike) -> dict[str, ConfigDict]:
    """Reads the configurations of the components in a run or export, by their roles, and none of their weights.

    Args:
      path: as for `read_components`. A download takes config.json alone.

    Raises:
      ValueError: a folder or file is missing, damaged, or of another version.
    """
    _check_path(path)
    if hub.is_hub(path):
        folder, repository = hub.download(path, [CONFIG_FILE])
        if not is_export(folder, with_weights=False):
            raise _no_export(repository)
    else:
        folder = DEFAULT_FOLDER if path == DEFAULT else split_step(path)[0]
    config_file, content = _read_content(folder)
    if "components" not in content:
        config = read_config(folder)
        return {Component(config, {}, source_path=folder).role: config}
    with untrusted.reading(config_file, _CURE):
        return {role: from_json(entry["config"]) for role, entry in read_entries(content).items()}


def _check_path(path: object) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{path!r} is no path: pass that of a run or an export, or hf://OWNER/NAME")
    if not os.fspath(path):
        raise ValueError("the path of the model is empty: pass that of a run or an export, or leave it out")


def _read_content(path: str) -> tuple[str, dict[str, Any]]:
    """Returns the path and the content of config.json in a folder."""
    config_file = os.path.join(path, CONFIG_FILE)
    if not os.path.isdir(path):
        raise ValueError(f"{path}: no such folder; pass what `bandtok train` or `bandtok export` wrote")
    if not os.path.isfile(config_file):
        raise ValueError(f"{path} holds no config.json: pass a run folder or an export folder")
    return config_file, untrusted.read_json(config_file, expect.mapping(expect.anything), cure=_CURE)


def _read_repository(path: str | os.PathLike, dtype: str, only: Collection[str] | None) -> dict[str, Component]:
    """Returns the components of an export on the hub; their source is the repository at its commit."""
    folder, repository = hub.download(path)
    if not is_export(folder):
        raise _no_export(repository)
    return _read_export_as(str(repository), folder, dtype, only)


def _no_export(repository: hub.Repository) -> ValueError:
    return ValueError(
        f"{repository} holds no export of bandtok: give a repository that  bandtok export --push  made; weights of "
        "other programs are read by  bandtok import"
    )


def _read_export_as(name: str, folder: str, dtype: str, only: Collection[str] | None) -> dict[str, Component]:
    """Returns the components of an export that is known by a name, which becomes their source."""
    components = read_components(folder, dtype, only)
    for component in components.values():
        component.source_path = name
    return components


def _read_run(path: str, step: int | None, dtype: str) -> Component:
    """Returns the component of a run; its weights are those of adapters where it trained them."""
    extras.require("orbax", f"{path}: the checkpoint of a run", otherwise="give an export")
    from bandtok_jax.runs.weights import load_weights

    config = read_config(path)
    weights = load_weights(path, step)
    return Component(
        config,
        weights["model"],
        source_path=path,
        step=int(weights.get("step", 0)),
        tokenizer_hash=config.get("tokenizer_hash", ""),
        dtype=dtype,
    )


def _list(roles: Iterable[str]) -> str:
    return " and ".join(f"{'an' if role[0] in 'ae' else 'a'} {role.replace('_', ' ')}" for role in roles)
