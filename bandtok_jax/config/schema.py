"""The schema of a configuration: limits of its values, and the keys that may change when a run is resumed.

The file of a configuration gives each key a type by its value. This table adds the rest. A name may hold `*` for any
text, and the first name that matches a key decides. Keys of a network, of a loss and of a task need no entry.
"""

import dataclasses
import fnmatch
import functools
import math
import sys
from typing import Any

from ml_collections import ConfigDict

from bandtok_jax.configs.defaults import CONFIG_VERSION

DTYPES = ("float32", "bfloat16")  # to train in; float64 too, where JAX computes in 64 bits
READABLE_DTYPES = (*DTYPES, "float16", "float64")
LARGEST_SEED = 2**32 - 1  # JAX drops higher bits

NETWORK_GROUPS = ("model", "mel", "discriminator")  # groups that hold the keyword arguments of a network
# Limits for configurations from elsewhere, our choice: no network has a larger size, and no key a longer list.
LARGEST_NETWORK_VALUE, LONGEST_LIST = 1 << 24, 64
BELOW_ONE = math.nextafter(1.0, 0.0)
LARGEST_GAIN_DB = 200.0  # beyond the range of 24 bits; our choice


@dataclasses.dataclass(frozen=True)
class Setting:
    """The properties of a key beyond its type.

    Attributes:
      minimum, maximum: inclusive limits of a number; None for no limit.
      whole: the number is an integer.
      length: the value is a list of this many such numbers; 0 for one or more.
      choices: all values that are allowed, if not empty.
      note: end of the error message for a wrong value.
      optional: None is a value.
      path: a path of a file or folder, in which `~` is expanded.
      mutable: the value may change when a run is resumed. All other keys define the run.
      written: the run writes the value, and a user does not set it.
    """

    minimum: float | None = None
    maximum: float | None = None
    whole: bool = False
    length: int | None = None
    choices: tuple[str, ...] = ()
    note: str = ""
    optional: bool = False
    path: bool = False
    mutable: bool = False
    written: bool = False

    def fault(self, value: Any) -> str:
        """Returns the instruction that corrects a value outside the limits, or ""."""
        if self.choices:
            return "" if value in self.choices else f"set it to one of {', '.join(self.choices)}"
        if self.length is None:
            return self._fault_of_number(value)
        if not isinstance(value, (tuple, list)) or not value or len(value) != (self.length or len(value)):
            return f"give {self.length or 'one or more'} numbers"
        faults = (self._fault_of_number(number) for number in value)
        return next((fault.replace("it", "each of them", 1) for fault in faults if fault), "")

    def _fault_of_number(self, value: Any) -> str:
        if self.minimum is None:
            return ""
        is_number = isinstance(value, int if self.whole else (int, float)) and not isinstance(value, bool)
        maximum = math.inf if self.maximum is None else self.maximum
        if is_number and self.minimum <= value <= maximum:
            return ""
        kind = "whole number" if self.whole else "number" if maximum == math.inf else "finite number"
        bounded = self.maximum is not None and self.whole
        limits = f"from {self.minimum} to {self.maximum}" if bounded else f"of at least {self.minimum}"
        return f"set it to a {kind} {limits}{self.note}"


SCHEMA: dict[str, Setting] = {
    "config_version": Setting(CONFIG_VERSION, CONFIG_VERSION, whole=True),
    "seed": Setting(0, LARGEST_SEED, whole=True),
    "dtype": Setting(choices=READABLE_DTYPES),
    # Length and schedule of the run, and its reports.
    "total_steps": Setting(1, whole=True, mutable=True),
    "schedule_steps": Setting(0, whole=True, mutable=True),
    "batch_size": Setting(1, whole=True),
    "log_every": Setting(1, whole=True, mutable=True),
    "evaluate_every": Setting(1, whole=True, mutable=True),
    "evaluation_batches": Setting(1, whole=True, mutable=True),
    "checkpoint_every": Setting(1, whole=True, mutable=True),
    "keep_checkpoints": Setting(1, whole=True, mutable=True),
    "patience": Setting(0, whole=True, mutable=True),
    "wandb_project": Setting(mutable=True),
    # Earlier components. Their paths may change, and their hashes decide whether they are the same.
    "tokenizer": Setting(path=True, mutable=True),
    "vocoder": Setting(path=True, mutable=True),
    "encoder": Setting(path=True, mutable=True),
    "autoencoder": Setting(path=True, mutable=True),
    "base": Setting(mutable=True, written=True),
    "*_hash": Setting(mutable=True, written=True),
    "versions*": Setting(mutable=True, written=True),
    "caption_fraction": Setting(mutable=True, written=True),
    "initialized_from_export": Setting(mutable=True, written=True),
    # Data. Its place and the way to read it may change, and `data_hash` decides whether it is the same.
    "data.sources": Setting(mutable=True),
    "data.tokens": Setting(path=True, mutable=True),
    "data.workers": Setting(0, whole=True, mutable=True),
    "data.damaged": Setting(mutable=True),
    "data.sample_rate_hz": Setting(1, whole=True),
    "data.channels": Setting(1, 2, whole=True),
    "data.clip_samples": Setting(1, whole=True),
    "data.columns": Setting(0, whole=True),
    "data.lyrics_tokens": Setting(0, whole=True),
    "data.lyrics_model": Setting(path=True),
    "data.loudness_lufs": Setting(optional=True),
    "data.caption_bytes": Setting(1, whole=True),
    "data.gain_db": Setting(-LARGEST_GAIN_DB, LARGEST_GAIN_DB, length=2, note=f" and at most {LARGEST_GAIN_DB}"),
    # Ways to compute the same numbers.
    "mesh.*": Setting(mutable=True),
    "optimizer.accumulation_steps": Setting(1, whole=True, mutable=True),
    "model.remat": Setting(mutable=True),
    "model.sequence_sharding": Setting(mutable=True),
    # Numbers that would make training impossible.
    "scale_decay": Setting(0, 1),
    "*optimizer.learning_rate": Setting(0, sys.float_info.max),
    "*optimizer.warmup_steps": Setting(0, whole=True),
    "*optimizer.beta?": Setting(0, BELOW_ONE, note=" and below 1"),
    "*optimizer.weight_decay": Setting(0),
    "*optimizer.final_lr_fraction": Setting(0),
    "*.ema_decay": Setting(0, BELOW_ONE, note=" and below 1"),
    "*optimizer.gradient_clip_norm": Setting(0, note="; 0 switches it off"),
    "lora.rank": Setting(0, whole=True, note="; 0 trains all weights"),
    "lora.alpha": Setting(1e-3, sys.float_info.max),
    "loss.infill_fraction": Setting(0, 1, note=" and at most 1"),
    "loss.*_dropout": Setting(0, 1, note=" and at most 1"),
    "loss.balancer_decay": Setting(0, BELOW_ONE, note=" and below 1"),
    "loss.adversarial_ramp": Setting(0, whole=True),
    "loss.adversarial_samples": Setting(0, whole=True, note="; 0 for all"),
    "loss.discriminator_warmup": Setting(0, whole=True),
    "loss.stft_windows": Setting(4, whole=True, length=0),
    "loss.context_frames": Setting(length=2),
    "codebook.restart_fraction": Setting(0),
    "normaliser_examples": Setting(1, whole=True),
    "sampling.steps": Setting(1, whole=True),
    "loss.perceptual_features": Setting(path=True),
    "codebook.kmeans_batches": Setting(0, whole=True, note="; 0 starts without k-means"),
}


@functools.cache
def setting(key: str) -> Setting:
    """Returns the entry of a dotted key; an empty one for a key that the table does not restrict."""
    return next((entry for name, entry in SCHEMA.items() if fnmatch.fnmatchcase(key, name)), Setting())


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns the values of a configuration by their dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        inner = {f"{name}.{key}": item for key, item in flatten(value).items()} if isinstance(value, ConfigDict) else {}
        flat |= inner if isinstance(value, ConfigDict) else {name: value}
    return flat
