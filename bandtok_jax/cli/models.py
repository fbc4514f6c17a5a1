"""The verbs that make exports, export and import, and the flags that all verbs with a model share."""

import argparse
from collections.abc import Collection, Iterator
import contextlib
import functools
import gc
from typing import TYPE_CHECKING

from bandtok_jax.cli.messages import show
from bandtok_jax.cli.parser import flag, verb

if TYPE_CHECKING:
    from bandtok_jax.codecs.codec import Codec

MODEL = flag(
    "--model", required=True, metavar="RUN_OR_EXPORT", help="the tokenizer's run, or an export folder"
)  # fmt: skip
DECODING = (
    flag("--vocoder", metavar="RUN", help="run or export folder, where --model holds no vocoder"),
    flag(
        "--dtype", choices=("float32", "bfloat16"),
        help="of the computation of vocoder and language model (default: as in training, but float32 on a CPU)",
    ),
)  # fmt: skip


@contextlib.contextmanager
def quick_start() -> Iterator[None]:
    """Pauses garbage collection while modules are imported and a model is loaded: a tenth of the start of a verb.

    Almost all of these objects live to the end, so later collections leave them out.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def load_codec(flags: argparse.Namespace, only: Collection[str] | None = None) -> "Codec":
    """Returns the codec that the flags name, and prints the line about the devices.

    Args:
      flags: parsed flags, with `model` and perhaps `vocoder`, `language_model` and `dtype`.
      only: names of the components that the verb needs; all by default.
    """
    from bandtok_jax.pretrained import model_folder
    from bandtok_jax.runtime import startup

    names = ("vocoder", "language_model", "dtype")
    codec = model_folder.load(flags.model, **{name: getattr(flags, name, None) or "" for name in names}, only=only)
    dtypes = (stage.compute_dtype for stage in codec.components.values())
    startup.announce(*dtypes, spread="one track on each device" if flags.verb == "tokenize" else "one device")
    return codec


@verb(
    "export",
    "bundle components in one folder: safetensors, config and model card",
    "bandtok export runs/tokenizer --vocoder=runs/vocoder --language-model=runs/lm -o models/mine",
    flag("run_folder", metavar="RUN", help="run folder of the tokenizer, or an export folder"),
    flag("--vocoder", metavar="RUN"),
    flag("--language-model", metavar="RUN"),
    flag("--output", "-o", required=True, metavar="DIR"),
)
def export(flags: argparse.Namespace) -> None:
    """Runs `bandtok export`."""
    from bandtok_jax.pretrained import model_folder

    codec = model_folder.export(
        flags.run_folder, vocoder=flags.vocoder, language_model=flags.language_model, output=flags.output
    )
    show(f"{flags.output}: {', '.join(codec.components)}; weight hash {codec.weight_hash[:12]}")


@verb(
    "import",
    "make an export of weights that other software has trained",
    "bandtok import weights_44khz_8kbps_0.0.1.pth --from=dac -o models/dac",
    flag("weights", metavar="WEIGHTS", help="file or folder of weights; nothing in it is executed"),
    flag(
        "--from", dest="kind", required=True, choices=("dac", "dac-hf", "vocos"),
        help="dac: weights.pth of descript-audio-codec; dac-hf: DacModel of transformers, a folder with config.json; "
        "vocos: a vocoder of the package vocos, a folder with config.yaml",
    ),
    flag(
        "--parity", action="store_true",
        help="DAC at 24 and 16 kHz: audio ends 8 samples early, as published; by default it is as long as its codes",
    ),
    flag("--output", "-o", required=True, metavar="DIR"),
)  # fmt: skip
def import_weights(flags: argparse.Namespace) -> None:
    """Runs `bandtok import`."""
    from bandtok_jax.codecs.registry import assemble
    from bandtok_jax.pretrained import export_folder, import_dac, import_vocos

    readers = {
        "dac": functools.partial(import_dac.read_official, parity=flags.parity),
        "dac-hf": functools.partial(import_dac.read_transformers, parity=flags.parity),
        "vocos": import_vocos.read_vocos,
    }
    if flags.parity and flags.kind == "vocos":
        raise ValueError("--parity is about the length of DAC's audio: leave it out for a vocoder")
    stage = readers[flags.kind](flags.weights)
    if stage.role == "vocoder":
        export_folder.save_vocoder(stage, flags.output)
        mel = stage.mel
        show(
            f"{flags.output}: vocoder, {mel.mels} mel bands of {mel.sample_rate_hz} Hz, {mel.hop_samples} samples a "
            f'frame, padding "{mel.padding}"; weight hash {stage.weight_hash[:12]}; use it with a tokenizer of that mel'
        )
        return
    codec = assemble({stage.role: stage})
    export_folder.save_codec(codec, flags.output)
    show(
        f"{flags.output}: {stage.role}, {codec.rows} rows of {codec.codebook_size} codes at {codec.sample_rate_hz} Hz, "
        f"{codec.bits_per_second / 1000:.2f} kbit/s; weight hash {codec.weight_hash[:12]}"
    )
