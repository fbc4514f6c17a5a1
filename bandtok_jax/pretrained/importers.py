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
    """

    reader: str
    files: tuple[str, ...]
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    licence: str = ""


_PARITY_OF_DAC = "audio at 24 and 16 kHz ends 8 samples early"
FORMATS = {
    "dac": Format(
        "bandtok_jax.pretrained.import_dac:read_official",
        ("weights.pth of descript-audio-codec",),
        {"parity": _PARITY_OF_DAC},
    ),
    "dac-hf": Format(
        "bandtok_jax.pretrained.import_dac:read_transformers",
        ("DacModel of transformers, a folder with config.json",),
        {"parity": _PARITY_OF_DAC},
    ),
    "meltok": Format(
        "bandtok_jax.pretrained.import_meltok:read_meltok",
        ("stage 1 of MelTok (vae_...) with its tokenizer", "stage 2 of MelTok (.ckpt) with its vocoder"),
        {
            "parity": "norms and attention see the whole file, of at most 24 s at 44.1 kHz, not half a second of it",
            "silu": "the activation is SiLU, for weights of a training with the package cosmos-tokenizer",
        },
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
    "vocos": Format(
        "bandtok_jax.pretrained.import_vocos:read_vocos",
        ("vocoder of the package vocos, a folder with config.yaml",),
    ),
}
READERS: Registry[Any] = Registry({name: entry.reader for name, entry in FORMATS.items()})


def read(name: str, paths: Sequence[str], **options: bool) -> dict[str, "Component"]:
    """Returns the components in weights of other software, by their roles.

    Args:
      name: a key of `FORMATS`.
      paths: files or folders, in the order of `Format.files`.
      options: options of the format; False is the same as no option.

    Raises:
      ValueError, FileNotFoundError: an option or a number of paths that the format does not have, or an error of its
        reader.
    """
    entry = FORMATS[name]
    if len(paths) > len(entry.files):
        raise ValueError(
            f"{len(paths)} paths of weights, and --from={name} reads {len(entry.files)}: leave out the rest"
        )
    options = {option: value for option, value in options.items() if value}
    for option in options:
        if option not in entry.options:
            raise ValueError(f"--{option} has no meaning for --from={name}: leave it out")
    components = READERS.find(name, f"--from={name} is unknown; known are")(*paths, **options)
    return components if isinstance(components, dict) else {components.role: components}
