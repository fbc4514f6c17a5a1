"""Checks of a configuration against the schema and against a shipped configuration of its task."""

import numbers
from typing import Any

from ml_collections import ConfigDict

from bandtok_jax.audio.mel_bands import MelDefinition
from bandtok_jax.config.schema import (
    DTYPES,
    LARGEST_NETWORK_VALUE,
    LONGEST_LIST,
    NETWORK_GROUPS,
    SCHEMA,
    flatten,
    setting,
)
from bandtok_jax.config.shipped import suggest
from bandtok_jax.configs.defaults import CONFIG_VERSION
from bandtok_jax.runtime import untrusted

# Types in config.json of a value of each type.
_STORED_AS = {
    bool: (bool,), int: (int,), float: (int, float), str: (str,), tuple: (list,), list: (list,), ConfigDict: (dict,),
}  # fmt: skip


def check_version(version: Any) -> None:
    """Raises a ValueError unless this program reads configurations of that version."""
    if version != CONFIG_VERSION:
        raise ValueError(
            f"config_version is {untrusted.shown(version)}, and this program reads version {CONFIG_VERSION}: "
            "use the bandtok-jax that wrote it, or train again"
        )


def check_keys(config: ConfigDict, reference: ConfigDict, origin: str) -> None:
    """Raises a ValueError where a configuration lacks a key, or has one that nothing reads.

    Args:
      config: from the file of a user.
      reference: a shipped configuration of the same task, or the defaults. Its empty groups may hold any keys, and so
        may the whole where the task is another one.
      origin: names the configuration in the message.
    """
    flat, expected = flatten(config), flatten(reference)
    free = tuple(f"{name}." for name, value in reference.items() if value == ConfigDict())
    for key in [*reference, *expected]:
        if key not in (flat if key in expected else config):
            raise ValueError(
                f"{origin} has no key {key}: begin with  defaults.get_config()  of bandtok_jax.configs, and copy the "
                f"other keys from a shipped configuration of the task {config.get('task')!r}"
            )
    for key in flat:
        group = key.partition(".")[0]
        if key in expected or key.startswith(free) or (config.task != reference.task and group not in reference):
            continue
        names = [name.rpartition(".")[2] for name in expected if name.rpartition(".")[0] == key.rpartition(".")[0]]
        nearest = suggest(key.rpartition(".")[2], names)
        raise ValueError(f"{origin} has the key {key}, which nothing reads{nearest}; remove it")


def check_types(value: Any, reference: Any, key: str = "") -> None:
    """Raises a ValueError where a value from config.json is too large, or of another type than in a reference.

    Args:
      value: anything that JSON holds.
      reference: the value in a shipped configuration; None where that has no such key.
      key: dotted name of the value.
    """
    if isinstance(value, dict):
        if reference is not None and not isinstance(reference, ConfigDict):
            raise ValueError(f"{key} is a group of keys, not a value like {reference!r}")
        for name, item in value.items():
            check_types(item, None if reference is None else reference.get(name), f"{key}.{name}".strip("."))
        return
    is_number, is_list = isinstance(value, (int, float)), isinstance(value, list)
    of_network = key.partition(".")[0] in NETWORK_GROUPS
    if (is_number and of_network and abs(value) > LARGEST_NETWORK_VALUE) or (is_list and len(value) > LONGEST_LIST):
        raise ValueError(f"{key} is {untrusted.shown(value)}, above the limit of any configuration")
    if is_list:
        for position, item in enumerate(value):
            check_types(item, None, f"{key}[{position}]")
    types = _STORED_AS.get(type(reference))
    if types and type(value) not in types and not (value is None and setting(key).optional):
        raise ValueError(f"{key} is {untrusted.shown(value)}, not a value like {reference!r}")


def check_values(config: ConfigDict) -> None:
    """Raises a ValueError where a value is outside the limits of the schema."""
    for key, value in flatten(config).items():
        if fault := setting(key).fault(value):
            raise ValueError(f"config.{key} is {value!r}: {fault}")


def check_trainable(config: ConfigDict) -> None:
    """Raises a ValueError where nothing can be trained with a configuration."""
    check_values(config)
    _check_dtype(config.dtype)
    _check_sample_rate(config)


def check_seed(seed: int, name: str = "seed") -> None:
    """Raises a ValueError unless JAX uses every bit of the seed."""
    value = int(seed) if isinstance(seed, numbers.Integral) else seed
    if fault := SCHEMA["seed"].fault(value):
        raise ValueError(f"{name} is {seed!r}: {fault}")


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
    import jax  # only for the rare configuration that asks for it

    return jax.dtypes.canonicalize_dtype("float64") == "float64"


def _check_sample_rate(config: ConfigDict) -> None:
    """Raises a ValueError where the audio has another sample rate than the mel, which would shift all bands."""
    if "mel" not in config:
        return
    audio_hz, mel_hz = config.data.sample_rate_hz, config.mel.get("sample_rate_hz", MelDefinition.sample_rate_hz)
    if audio_hz != mel_hz:
        raise ValueError(
            f"config.data.sample_rate_hz is {audio_hz}, and the mel of this configuration is one of {mel_hz} Hz: set "
            f"--config.data.sample_rate_hz={mel_hz}, or use a configuration whose mel is one of {audio_hz} Hz"
        )
