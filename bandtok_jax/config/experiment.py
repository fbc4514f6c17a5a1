"""Finding, changing and storing configurations.

A configuration is named as `bandtok:tiny` (shipped with the package), `path/to/file.py:variant` or as the folder of a
run, whose `config.json` is read.
"""

import ast
import difflib
import importlib
import importlib.util
import json
import math
import numbers
import os
import pathlib
import pkgutil
import traceback

from ml_collections import ConfigDict

from bandtok_jax.audio.mel_bands import MelDefinition
from bandtok_jax.configs import defaults
from bandtok_jax.runtime import storage, untrusted

DTYPES = ("float32", "bfloat16")  # float64 too, where JAX computes in 64 bits
_READABLE_DTYPES = (*DTYPES, "float16", "float64")
LARGEST_SEED = 2**32 - 1  # JAX cuts off the higher bits

# The least value of the numbers that no experiment can run below, where its configuration has them.
_LEAST_COUNT = {
    "total_steps": 1, "batch_size": 1, "log_every": 1, "evaluate_every": 1, "evaluation_batches": 1,
    "checkpoint_every": 1, "keep_checkpoints": 1, "patience": 0, "codebook.kmeans_batches": 1, "data.sample_rate_hz": 1,
    "data.clip_samples": 1, "data.columns": 0, "data.workers": 0, "optimizer.accumulation_steps": 1,
    "schedule_steps": 0, "optimizer.warmup_steps": 0, "discriminator_optimizer.warmup_steps": 0,
}  # fmt: skip
_RATES = ("optimizer.learning_rate", "discriminator_optimizer.learning_rate")
_NORMS = ("optimizer.gradient_clip_norm", "discriminator_optimizer.gradient_clip_norm")
# Keys that older runs do not have, with what they did; where a configuration has the key, it is as if they said so.
MEANT = {
    "optimizer.decay_bias_and_norm": False,
    "discriminator_optimizer.decay_bias_and_norm": False,
    "loss.feature_average": "discriminators",
    "loss.balancer_decay": 0.0,
    "loss.waveform": 0.0,
    "discriminator.rates": (),
    "codebook.ema_decay": 0.0,
    "model.residual_levels": 0,
    "model.latent_dim": 128,
    "model.row_vocabulary": False,
    "model.sequence_sharding": False,
    "data.balance_domains": False,
    "data.damaged": "fail",
}
# Of a run: what loss.discriminator_warmup was before the run found that its critics need none.
WARMUP_GIVEN = "discriminator_warmup_given"
_OF_NETWORKS = ("model", "mel", "discriminator")
_MAY_BE_NONE = ("data.loudness_lufs",)
_PATHS = ("tokenizer", "vocoder", "data.tokens")  # data.sources holds several
# What config.json holds of each type; and our limits for numbers of networks, and for lists.
_STORED_AS = {
    bool: (bool,), int: (int,), float: (int, float), str: (str,), tuple: (list,), list: (list,), ConfigDict: (dict,),
}  # fmt: skip
_LARGEST_OF_NETWORKS, _LONGEST = 1 << 24, 64
_MISSING = object()


def load_config(name: str, overrides: dict[str, str] | None = None) -> ConfigDict:
    """The locked configuration of that name, with dotted `overrides` such as `{"optimizer.learning_rate": "1e-4"}`.

    Args:
      name: NAME:VARIANT, path/to/config.py:VARIANT, or a run's folder; one that is called like what is shipped is
        "./dac", so that names do not depend on where one stands.

    Raises:
      ValueError: no such configuration, key or type, where the message names the nearest one there is; a value that
        nothing can run with; or a configuration file that does not run.
    """
    path, _, variant = str(name).partition(":")
    if pathlib.Path(name).is_dir() and name not in shipped():
        config = read_config(name)
        if "task" not in config:
            raise ValueError(f"{name} holds no run's configuration: give a run, NAME:VARIANT or path/to/config.py")
        with untrusted.reading(pathlib.Path(name) / "config.json", "copy it again from its run"):
            _check(config := _as_given(config))
    else:
        config = _from_file(path, variant) if path.endswith(".py") else _shipped(path, variant)
    for key, text in (overrides or {}).items():
        _override(config, key, text)
    _check(config)
    return config.lock()


def _as_given(config: ConfigDict) -> ConfigDict:
    """A run's configuration without what the run made of it."""
    config = config.copy_and_resolve_references().unlock()
    if WARMUP_GIVEN in config:
        config.loss.discriminator_warmup = config[WARMUP_GIVEN]
        del config[WARMUP_GIVEN]
    return config.lock()


def read_config(folder) -> ConfigDict:
    """The configuration stored in a run or export folder.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged.
    """
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder of a run or of an export")
    cure = "copy it again from a run of the same one, or give another folder"
    content = untrusted.read_json(path, untrusted.mapping(untrusted.anything), cure=cure)
    with untrusted.reading(path, cure):
        return stored(content)


def stored(content: dict) -> ConfigDict:
    """The locked configuration that config.json holds as plain values.

    Raises:
      ValueError: names the first key whose value has another type than that of a configuration, or is one that nothing
        can run with.
    """
    _check_like(content, _kin(content), "")
    config = ConfigDict(content, convert_dict=True).lock()
    _check_values(config)
    return config


def _check_like(value, known, key: str) -> None:
    """Raises a ValueError where a stored value is not like that of a shipped configuration, None for unknown ones."""
    if isinstance(value, dict):
        if known is not None and not isinstance(known, ConfigDict):
            raise ValueError(f"{key} is a group of keys, not a value like {known!r}")
        for name, item in value.items():
            _check_like(item, known.get(name) if known is not None else None, f"{key}.{name}".strip("."))
        return
    large = abs(value) > _LARGEST_OF_NETWORKS if isinstance(value, (int, float)) else False
    if (large and key.partition(".")[0] in _OF_NETWORKS) or (isinstance(value, list) and len(value) > _LONGEST):
        raise ValueError(f"{key} is {untrusted.shown(value)}, which no experiment has")
    if isinstance(value, list):
        for position, item in enumerate(value):
            _check_like(item, None, f"{key}[{position}]")
    kinds = _STORED_AS.get(type(known))
    if kinds and not (type(value) in kinds or value is None and key in _MAY_BE_NONE):
        raise ValueError(f"{key} is {untrusted.shown(value)}, not a value like {known!r}")


def write_config(config: ConfigDict, folder) -> None:
    """Stores the configuration as `config.json` in a run folder."""
    path = pathlib.Path(folder) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, json.dumps(plain(config), indent=2) + "\n")


def plain(value):
    """What `value` looks like after a round trip through config.json."""
    return json.loads(json.dumps(value.to_dict() if isinstance(value, ConfigDict) else value))


def difference(old, new, name: str = "") -> str:
    """The first key in which two configurations differ, with both values."""
    old, new = plain(old), plain(new)
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            if old.get(key) != new.get(key):
                return difference(old.get(key), new.get(key), f"{name}.{key}".strip("."))
    return f"{name or 'it'} was {old!r} and is now {new!r}"


def shipped() -> list[str]:
    """Names of the configurations that come with the package."""
    package = importlib.import_module("bandtok_jax.configs")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "defaults")


def variants(name: str) -> list[str]:
    """Returns the variants of a configuration that comes with the package."""
    return list(_module(name).VARIANTS)


def _shipped(name: str, variant: str) -> ConfigDict:
    return _module(name).get_config(*_given(variant))


def _module(name: str):
    if name not in shipped():
        raise ValueError(
            f"there is no configuration {name!r}{_near(name, shipped())}; shipped are {', '.join(shipped())}"
        )
    return importlib.import_module(f"bandtok_jax.configs.{name}")


def _from_file(path: str, variant: str) -> ConfigDict:
    if not pathlib.Path(path).is_file():
        raise ValueError(f"there is no configuration file {path}; shipped are {', '.join(shipped())}")
    specification = importlib.util.spec_from_file_location("bandtok_jax_config_file", path)
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ValueError(f"{path} has no get_config: define  def get_config(variant)  that returns a ConfigDict")
        config = module.get_config(*_given(variant))
    except ValueError:
        raise
    except Exception as error:
        # Whatever its author got wrong, the place in the file is what helps.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == specification.origin]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config of {path} returns a {type(config).__name__}: let it return a ConfigDict")
    _require_keys(config, path)
    return config


def _require_keys(config: ConfigDict, path: str) -> None:
    """Raises a ValueError where a configuration lacks what every one of its task has, or gives a network more."""
    for group, value in (kin := _kin(config)).items():
        for key in [group, *(f"{group}.{name}" for name in (value if isinstance(value, ConfigDict) else ()))]:
            if _find(config, key) is _MISSING and key not in MEANT:
                raise ValueError(
                    f"the configuration of {path} has no key {key}: begin with  defaults.get_config()  of "
                    "bandtok_jax.configs, and give it what that of another file has for this task"
                )
    for group in _OF_NETWORKS:
        known = kin.get(group, {})
        if unknown := [key for key in config.get(group, {}) if known and key not in known]:
            raise ValueError(
                f"the configuration of {path} has the key {group}.{unknown[0]}, which no network of its task takes"
                f"{_near(unknown[0], known)}; take it out"
            )


def _kin(content: dict | ConfigDict) -> ConfigDict:
    """Returns a shipped configuration of the same task, by default the defaults, without networks of another kind."""
    kin = [_shipped(name, "") for name in shipped()]
    kin = next(
        (one for one in kin if one.task == content.get("task")), defaults.get_config()
    ).copy_and_resolve_references()
    for group in ("model", "discriminator"):
        if group in kin and _kind(content, group) not in ("", _kind(kin, group)):
            del kin.unlock()[group]
    return kin


def _kind(content: dict | ConfigDict, group: str) -> str:
    """Returns the kind of network that a group names, or ""."""
    network = content.get(group)
    return network.get("kind", "") if isinstance(network, (dict, ConfigDict)) else ""


def _given(variant: str) -> tuple[str, ...]:
    """The arguments of `get_config`: without a variant, its own default holds."""
    return (variant,) if variant else ()


def _check(config: ConfigDict) -> None:
    """Raises a ValueError where nothing can be trained with a configuration."""
    _check_values(config)
    _check_dtype(config.get("dtype", DTYPES[0]))
    _check_rates(config)


def _check_values(config: ConfigDict) -> None:
    """Raises a ValueError where a value is one that nothing can run with; keys that are not there need no check."""
    for key, least in _LEAST_COUNT.items():
        value = _find(config, key)
        if value is not _MISSING and not (isinstance(value, int) and value >= least):
            raise ValueError(f"config.{key} is {value!r}: set it to a whole number of at least {least}")
    for key in _RATES:
        value = _find(config, key)
        if value is not _MISSING and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
            raise ValueError(f"config.{key} is {value!r}: set it to a finite number of at least 0")
    for key in _NORMS:
        value = _find(config, key)
        if value is not _MISSING and not (isinstance(value, (int, float)) and value >= 0):
            raise ValueError(f"config.{key} is {value!r}: set it to a number of at least 0; 0 switches it off")
    if "seed" in config:
        check_seed(config.seed, "config.seed")
    if config.get("dtype", DTYPES[0]) not in _READABLE_DTYPES:
        raise ValueError(f"config.dtype is {config.dtype!r}: set it to one of {', '.join(DTYPES)}")


def _check_dtype(name: str) -> None:
    """Raises a ValueError unless a training can compute in that dtype."""
    if name in DTYPES or name == "float64" and _computes_in_64_bits():
        return
    reason = {
        "float16": ", whose range is too narrow for gradients without loss scaling; bfloat16 has that of float32",
        "float64": ", and JAX computes in 32 bits: export JAX_ENABLE_X64=1 to change that",
    }[name]
    raise ValueError(f"config.dtype is {name!r}{reason}: set it to one of {', '.join(DTYPES)}")


def _computes_in_64_bits() -> bool:
    import jax  # for the rare configuration that asks for it

    return jax.config.jax_enable_x64


def _check_rates(config: ConfigDict) -> None:
    """Raises a ValueError where the sound is not of the rate that the mel is one of: all bands would lie elsewhere."""
    if "mel" not in config:
        return
    heard, drawn = config.data.sample_rate_hz, config.mel.get("sample_rate_hz", MelDefinition.sample_rate_hz)
    if heard != drawn:
        raise ValueError(
            f"config.data.sample_rate_hz is {heard}, and the mel of this configuration is one of {drawn} Hz: set "
            f"--config.data.sample_rate_hz={drawn}, or take a configuration whose mel is one of {heard} Hz"
        )


def check_seed(seed: int, name: str = "seed") -> None:
    """Raises a ValueError unless JAX takes every bit of the seed."""
    if not (isinstance(seed, numbers.Integral) and 0 <= seed <= LARGEST_SEED):
        raise ValueError(f"{name} is {seed!r}: set it to a whole number from 0 to {LARGEST_SEED}")


def _find(config: ConfigDict, key: str):
    """The value of a dotted key, or _MISSING."""
    for name in key.split("."):
        config = config.get(name, _MISSING) if isinstance(config, ConfigDict) else _MISSING
    return config


def _override(config: ConfigDict, key: str, text: str) -> None:
    *groups, last = key.split(".")
    group, walked = config, []
    for name in [*groups, last]:
        if not isinstance(group, ConfigDict) or name not in group:
            there = list(group.keys()) if isinstance(group, ConfigDict) else []
            where = ".".join(["config", *walked])
            raise ValueError(
                f"there is no key {name!r} in {where}{_near(name, there)}; all keys:  bandtok config NAME:VARIANT"
            )
        walked.append(name)
        if name is not last or len(walked) <= len(groups):
            group = group[name]
    value = _parse(text, group[last], key)
    with group.unlocked(), group.ignore_type():
        group[last] = value


def _parse(text, old, key: str):
    if not isinstance(text, str):
        return text
    if isinstance(old, ConfigDict):
        raise ValueError(f"config.{key} is a group; set one of its keys: {', '.join(old.keys())}")
    if isinstance(old, str):
        return os.path.expanduser(text) if key in _PATHS else text
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        raise ValueError(f"config.{key} cannot be {text!r}; it is now {old!r}") from None
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, (tuple, list)) and isinstance(value, (tuple, list)):
        value = tuple(value)
    elif value is None and key in _MAY_BE_NONE:
        return None
    elif old is not None and type(value) is not type(old):
        raise ValueError(f"config.{key} cannot be {text!r}: it must be of the type of {old!r}")
    return value


def _near(name: str, names) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
