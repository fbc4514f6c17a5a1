"""The formats of `bandtok import`: weights of other software, each with its reader."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import TYPE_CHECKING, Any

from bandtok_jax.runtime.registry import Registry

if TYPE_CHECKING:
    from bandtok_jax.codecs.component import Component


@dataclasses.dataclass(frozen=True)
class Format:
    """A format and its reader.

    Attributes:
      reader: "module:function". It takes the paths and the options, and returns a component, or components by their
        roles. It runs no code of the files.
      files: a description of each path; all but the first may be left out.
      options: a description of each keyword argument of the reader, a switch that is off by default.
      licence: the licence of all weights of this format; "" where it differs.
      hub_files: files that are read of a repository of the Hugging Face hub; empty where the paths are files.
    """

    reader: str
    files: tuple[str, ...]
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    licence: str = ""
    hub_files: tuple[str, ...] = ()


_PARITY_OF_DAC = "audio at 24 and 16 kHz ends 8 samples early"
FORMATS = {
    "bigvgan": Format(
        "bandtok_jax.pretrained.import_bigvgan:read_bigvgan",
        ("generator of BigVGAN, a folder with config.json and bigvgan_generator.pt, or hf://OWNER/NAME",),
        hub_files=("config.json", "bigvgan_generator.pt"),
    ),
    "dac": Format(
        "bandtok_jax.pretrained.import_dac:read_official",
        ("weights.pth of descript-audio-codec",),
        {"parity": _PARITY_OF_DAC},
    ),
    "dac-hf": Format(
        "bandtok_jax.pretrained.import_dac:read_transformers",
        ("DacModel of transformers, a folder with config.json, or hf://OWNER/NAME",),
        {"parity": _PARITY_OF_DAC},
        hub_files=("config.json", "model.safetensors"),
    ),
    "encodec": Format(
        "bandtok_jax.pretrained.import_encodec:read_encodec",
        (
            "EnCodec of 24 kHz, encodec_24khz-....th of the package encodec, a folder of transformers' EncodecModel "
            "with config.json, or hf://OWNER/NAME",
        ),
        licence="CC BY-NC 4.0, no commercial use",
        hub_files=("config.json", "model.safetensors"),
    ),
    "meltok": Format(
        "bandtok_jax.pretrained.import_meltok:read_meltok",
        ("stage 1 of MelTok (vae_...) with its tokenizer", "stage 2 of MelTok (.ckpt) with its vocoder"),
        {
            "parity": "norms and attention see the whole file, of at most 24 s at 44.1 kHz, not half a second of it",
            "silu": "the activation is SiLU, for weights of a training with the package cosmos-tokenizer",
        },
    ),
    "mimi": Format(
        "bandtok_jax.pretrained.import_mimi:read_mimi",
        (
            "Mimi, a folder of transformers' MimiModel with config.json, the safetensors of the package moshi, or "
            "hf://OWNER/NAME",
        ),
        licence="CC BY 4.0",
        hub_files=("config.json", "model.safetensors"),
    ),
    "mucodec": Format(
        "bandtok_jax.pretrained.import_mucodec:read_mucodec",
        (
            "mucodec.pt with its two companions in any order, or one of these alone",
            "audioldm_48k.pth with autoencoder and vocoder",
            "muq.pt with the encoder, unless mucodec.pt holds it",
        ),
        licence="CC BY-NC 4.0, no commercial use",
    ),
    "snac": Format(
        "bandtok_jax.pretrained.import_snac:read_snac",
        ("model of SNAC, a folder with config.json and pytorch_model.bin, or hf://OWNER/NAME",),
        hub_files=("config.json", "pytorch_model.bin"),
    ),
    "vocos": Format(
        "bandtok_jax.pretrained.import_vocos:read_vocos",
        ("vocoder of the package vocos, a folder with config.yaml, or hf://OWNER/NAME",),
        hub_files=("config.yaml", "pytorch_model.bin", "model.safetensors"),
    ),
}
READERS: Registry[Any] = Registry({name: entry.reader for name, entry in FORMATS.items()})


def read(name: str, paths: Sequence[str], **options: bool) -> dict[str, "Component"]:
    """Returns the components in weights of other software, by their roles.

    Args:
      name: a key of `FORMATS`.
      paths: files, folders or repositories, in the order of `Format.files`.
      options: options of the format; False is the same as no option.

    Raises:
      ImportError: a path begins with hf://, and huggingface_hub is not installed.
      ValueError, FileNotFoundError: an option or a number of paths that the format does not have, or an error of its
        reader.
    """
    from bandtok_jax.pretrained import hub  # imports NumPy, and the help of the program lists these formats

    entry = FORMATS[name]
    if len(paths) > len(entry.files):
        raise ValueError(
            f"{len(paths)} paths of weights, and --from={name} reads {len(entry.files)}: leave out the rest"
        )
    options = {option: value for option, value in options.items() if value}
    for option in options:
        if option not in entry.options:
            raise ValueError(f"--{option} has no meaning for --from={name}: leave it out")
    reader = READERS.find(name, f"--from={name} is unknown; known are")
    if hub.is_hub(paths[0]):
        return _read_repository(name, paths[0], options)
    return _by_role(reader(*paths, **options))


def _read_repository(name: str, path: str, options: Mapping[str, bool]) -> dict[str, "Component"]:
    """Returns the components in a repository.

    Their card names its commit, and the licence that it states, or else that of the format.
    """
    from bandtok_jax.pretrained import hub

    entry = FORMATS[name]
    if not entry.hub_files:
        raise ValueError(f"{path}: --from={name} reads files: download {entry.files[0]}, and give its path")
    folder, repository = hub.download(path, (*entry.hub_files, "README.md"))
    components = _by_role(READERS.find(name, "")(folder, **options))
    for component in components.values():
        component.source_path = str(repository)
        licence = hub.card_licence(folder) or component.card.get("licence", "")
        component.card = card(repository) | ({"licence": licence} if licence else {})
    return components


def card(origin: object) -> dict[str, Any]:
    """Returns the entries of a model card for weights from a file, a folder or a repository of others."""
    return {"scores": {}, "data": [f"weights imported from {origin}, whose licence holds"]}


def _by_role(components: Any) -> dict[str, "Component"]:
    return components if isinstance(components, dict) else {components.role: components}
