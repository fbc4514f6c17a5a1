"""Low-rank adapters of a language model (see `layers.lora`): merged with their base, or in a file of their own.

ADAPTERS  adapters.safetensors    the factors of each kernel; the metadata hold the weight hash of the base, rank and
                                  alpha
"""

import dataclasses
import os

from bandtok_jax.codecs.component import Component
from bandtok_jax.config.stored import read_config
from bandtok_jax.formats import safetensors
from bandtok_jax.layers import lora
from bandtok_jax.layers.network import Tree
from bandtok_jax.pretrained.export_folder import split_step
from bandtok_jax.runtime import expect, untrusted

ADAPTERS_FILE = "adapters.safetensors"
_FORMAT = "bandtok-jax adapters"
_METADATA = expect.record(
    {
        "format": expect.one_of(_FORMAT),
        "base_hash": expect.text(64, "[0-9a-f]{64}"),
        "rank": expect.text(9, "[1-9][0-9]*"),
        "alpha": expect.text(30, r"[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?"),
    }
)
_CURE = "export it again with  bandtok export RUN --adapter"


def save_adapters(run: str | os.PathLike, output: str | os.PathLike) -> str:
    """Writes the adapters of a run to `adapters.safetensors` in a folder, and returns the path of the file.

    Args:
      run: run that trained adapters, or `RUN/checkpoints/STEP`.
      output: a folder; it is created where it does not exist.

    Raises:
      ValueError: the run trained all weights.
    """
    from bandtok_jax.runs.weights import load_weights  # slow to import

    folder, step = split_step(run)
    config = read_config(folder)
    if not config.get("base"):
        raise ValueError(
            f"{folder} has no adapters, for it was not trained with lora.rank: export it without --adapter"
        )
    path = os.path.join(output, ADAPTERS_FILE)
    metadata = {
        "format": _FORMAT,
        "base_hash": config.base_hash,
        "rank": str(config.lora.rank),
        "alpha": repr(float(config.lora.alpha)),
    }
    weights = load_weights(folder, step)["model"]["parameters"]
    os.makedirs(output, exist_ok=True)
    safetensors.save(path, weights, metadata)
    return path


def add_adapters(model: Component, path: str | os.PathLike) -> Component:
    """Returns a language model with the adapters of a file merged into its weights.

    Raises:
      ValueError: there is no such file, or it holds no adapters or those of another model.
    """
    if not os.path.isfile(path):
        raise ValueError(f"there is no file of adapters {path}: give that which  bandtok export RUN --adapter  writes")
    adapters = safetensors.load(path)
    with untrusted.reading(path, _CURE):
        metadata = safetensors.load_metadata(path)
        _METADATA(metadata, "its metadata")
    if metadata["base_hash"] != model.weight_hash:
        raise ValueError(
            f"{path} holds adapters of the language model {metadata['base_hash'][:12]}, and {model.source_path} is "
            f"{model.weight_hash[:12]}: load the model that they were trained for"
        )
    with untrusted.reading(path, _CURE):
        return _merged(model, model, adapters, float(metadata["alpha"]) / int(metadata["rank"]))


def merge_run(base: Component, run: Component) -> Component:
    """Returns the language model of a run that trained adapters.

    Args:
      base: the model that the adapters were trained for, as found now.
      run: with the adapters as its weights.

    Raises:
      ValueError: the base has other weights than in training.
    """
    if base.weight_hash != run.config.base_hash:
        raise ValueError(
            f"{run.source_path} holds adapters of the language model {run.config.base_hash[:12]}, and "
            f"{base.source_path} is now {base.weight_hash[:12]}: restore the base"
        )
    settings = run.config.lora
    return _merged(base, run, run.weights["parameters"], settings.alpha / settings.rank)


def _merged(base: Component, described_by: Component, adapters: Tree, scale: float) -> Component:
    """Returns the component that `described_by` describes, with the merged weights."""
    weights = {**base.weights, "parameters": lora.merge(base.weights["parameters"], adapters, scale)}
    return dataclasses.replace(described_by, weights=weights)
