"""Training of low-rank adapters (see `layers.lora`) for a network whose weights stay frozen, the base."""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import Any

from jax.sharding import PartitionSpec as P

from bandtok_jax.codecs.component import Component

# Settings in which a network may differ from its base: they change how it is trained or computed.
_FREE_SETTINGS = ("dropout", "attention", "remat", "sequence_sharding", "dtype")


def sharding(table: Sequence[tuple[str, P]], kernels: Iterable[str]) -> tuple[tuple[str, P], ...]:
    """Returns the rules of the adapters of some kernels.

    The factor with the outputs of a kernel is sharded like its outputs, that with the inputs like its inputs.

    Args:
      table: rules of the network, see `training.sharding`; those of the kernels end with `/kernel`.
      kernels: the paths of the kernels.
    """
    patterns = {next(pattern for pattern, _ in table if re.search(pattern, path)) for path in kernels}
    adapter_rules = []
    for pattern, spec in table:
        if pattern not in patterns:
            continue
        *axes, outputs, inputs = spec
        place = pattern.removesuffix("kernel")
        adapter_rules += [(f"{place}lora_a", P(*axes, None, inputs)), (f"{place}lora_b", P(*axes, outputs, None))]
    return tuple(adapter_rules)


def check_base(base: Component, settings: Mapping[str, Any], tokenizer_hash: str) -> Component:
    """Returns the base if adapters of a network with these settings can be trained on such tokens.

    Args:
      settings: arguments of the network by their names.
      tokenizer_hash: weight hash of the tokenizer that made the tokens.

    Raises:
      ValueError: the base has another architecture, or was trained on the tokens of another tokenizer.
    """
    settings = {name: value for name, value in settings.items() if name not in _FREE_SETTINGS}
    if differences := base.differences(settings, base.mel):
        raise ValueError(
            f"{base.source_path} has another architecture, {', '.join(differences)}: adapters need that of their base, "
            "so set --config.model.KEY=VALUE as there, or give another --init-from"
        )
    if base.tokenizer_hash not in ("", tokenizer_hash):
        raise ValueError(
            f"{base.source_path} was trained on the tokenizer {base.tokenizer_hash[:12]}, and the tokens in "
            f"data.tokens were made by {tokenizer_hash[:12]}: make tokens with its own tokenizer (bandtok tokenize)"
        )
    return base
