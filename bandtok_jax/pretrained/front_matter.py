"""The metadata at the head of a model card, which the Hugging Face hub reads, and the licence of an export."""

from collections.abc import Mapping
import re
from typing import TYPE_CHECKING, Any

from bandtok_jax.models import registry
from bandtok_jax.pretrained import hub

if TYPE_CHECKING:
    from bandtok_jax.codecs.component import Component

UNKNOWN = "unknown"  # the authors state no licence
_LICENCES = "https://huggingface.co/docs/hub/repositories-licenses"
_TAGS = ("audio", "music", "tokenizer", "jax")
_NOT_PUBLISHED = ("other", UNKNOWN)  # identifiers of the hub that allow nothing by themselves

Cards = Mapping[str, Mapping[str, Any]]


def lines(components: Mapping[str, "Component"], cards: Cards) -> list[str]:
    """Returns the lines of the metadata in YAML.

    Args:
      components: those of the export, by their roles.
      cards: `scores`, `data` and perhaps `licence` of every component by its role.
    """
    licence = _shared_licence(cards)
    pipeline = _pipeline(components)
    kinds = dict.fromkeys(component.config.model.kind.replace("_", "-") for component in components.values())
    bases = _base_models(components)
    return [
        "---",
        "library_name: bandtok-jax",
        *([f"license: {licence}"] if licence else []),
        *([f"pipeline_tag: {pipeline}"] if pipeline else []),
        f"tags: [{', '.join([*_TAGS, *kinds])}]",
        *([f"base_model: [{', '.join(bases)}]"] if bases else []),
        "---",
    ]


def require_licence(role: str, card: Mapping[str, Any], licence: str) -> None:
    """Raises a ValueError unless a component may be given this licence."""
    if not re.fullmatch(hub.LICENCE, licence) or licence in _NOT_PUBLISHED:
        raise ValueError(f"--licence={licence}: give an identifier of {_LICENCES}, such as cc-by-4.0")
    if card.get("licence", licence) != licence:
        raise ValueError(
            f"the licence of the {role.replace('_', ' ')} is {card['licence']}, not {licence}: leave --licence out, or "
            "export the other components alone"
        )


def require_publishable(cards: Cards) -> str:
    """Returns the licence of an export.

    Raises:
      ValueError: it has none, or more than one, or its authors state none, so that it must not be published.
    """
    licence = _shared_licence(cards)
    stated = ", ".join(f"{role.replace('_', ' ')} {card.get('licence', 'none')}" for role, card in cards.items())
    if UNKNOWN in (card.get("licence") for card in cards.values()):
        raise ValueError(f"licences: {stated}; weights whose authors state none must not be published: use them here")
    if not licence:
        raise ValueError(
            f"licences: {stated}; an export that is published has one licence for all: give --licence=NAME, an "
            f"identifier of {_LICENCES}"
        )
    return licence


def _shared_licence(cards: Cards) -> str:
    """Returns the licence of all components, "" where they have several or one has none."""
    licences = {card.get("licence", "") for card in cards.values()}
    return licences.pop() if len(licences) == 1 else ""


def _pipeline(components: Mapping[str, "Component"]) -> str:
    """Returns the task of the hub that fits, "" for none."""
    if "language_model" in components:
        return "text-to-audio"
    tokenizer = components.get("tokenizer")
    decodes = tokenizer is not None and ("vocoder" in components or tokenizer.network_class.produces == "audio")
    return "audio-to-audio" if decodes else ""


def _base_models(components: Mapping[str, "Component"]) -> list[str]:
    """Returns the repositories that components were read from, trained on or adapted from."""
    paths = []
    for component in components.values():
        paths += [component.source_path, *(component.config.get(key, "") for key in (*registry.ROLES, "base"))]
    return list(dict.fromkeys(hub.parse(path).name for path in paths if hub.is_hub(path)))
