"""The verbs that make exports, export and import, and the flags that all verbs with a model share."""

import argparse
from collections.abc import Collection, Iterator
import contextlib
import gc
import sys
from typing import TYPE_CHECKING

from bandtok_jax.cli.messages import show
from bandtok_jax.cli.parser import flag, verb
from bandtok_jax.pretrained import importers

if TYPE_CHECKING:
    from bandtok_jax.codecs.codec import Codec

OPTIONS = sorted({option for entry in importers.FORMATS.values() for option in entry.options})  # of all formats
MODEL = flag(
    "--model", default="default", metavar="RUN_OR_EXPORT",
    help="the tokenizer's run, an export, or hf://OWNER/NAME (default: the model that comes with the package)",
)  # fmt: skip
DECODING = (
    flag("--vocoder", metavar="RUN", help="run or export, where --model holds no vocoder"),
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


def load_codec(flags: argparse.Namespace, only: Collection[str] | None = None, spread: str = "one device") -> "Codec":
    """Returns the codec that the flags name, and prints the lines about the devices and the default model.

    Args:
      flags: parsed flags, with `model` and perhaps `vocoder`, `language_model`, `dtype` and `adapter`.
      only: names of the components that the verb needs; all by default.
      spread: the devices that compute, for the line.
    """
    from bandtok_jax.pretrained import model_folder
    from bandtok_jax.runtime import startup

    names = ("vocoder", "language_model", "dtype", "adapter")
    codec = model_folder.load(flags.model, **{name: getattr(flags, name, None) or "" for name in names}, only=only)
    dtypes = (stage.compute_dtype for stage in codec.components.values())
    startup.announce(*dtypes, spread=spread)
    if flags.model == model_folder.DEFAULT:
        show(model_folder.default_line(codec), file=sys.stderr)
    return codec


@verb(
    "export",
    "bundle components in one folder: safetensors, config and model card",
    "bandtok export runs/tokenizer --vocoder=runs/vocoder --language-model=runs/lm -o models/mine",
    flag("run_folder", metavar="RUN", help="run of the tokenizer, run with adapters, or export folder"),
    flag("--vocoder", metavar="RUN"),
    flag("--language-model", metavar="RUN"),
    flag("--adapter", action="store_true", help="write the adapters of a fine-tuned RUN alone, adapters.safetensors"),
    flag("--half", action="store_true", help="round the weights to float16, which halves the file"),
    flag("--licence", default="", metavar="NAME", help="licence of the weights by its identifier, such as cc-by-4.0"),
    flag("--push", metavar="OWNER/NAME", help="upload the export to the Hugging Face hub, too (needs --licence)"),
    flag("--private", action="store_true", help="--push into a private repository"),
    flag(
        "--format", choices=("safetensors", "stablehlo", "onnx"), default="safetensors",
        help="stablehlo, onnx: programs of fixed shapes for other runtimes, in place of an export",
    ),
    flag("--output", "-o", required=True, metavar="DIR"),
)  # fmt: skip
def export(flags: argparse.Namespace) -> None:
    """Runs `bandtok export`."""
    from bandtok_jax.pretrained import adapter_file, export_folder, hub, model_folder

    if flags.adapter:
        others = (flags.vocoder, flags.language_model, flags.half, flags.licence, flags.push, flags.private)
        if any(others) or flags.format != "safetensors":
            raise ValueError("--adapter writes the adapters of RUN alone: leave out the other flags")
        show(adapter_file.save_adapters(flags.run_folder, flags.output))
        return
    if flags.format != "safetensors":
        from bandtok_jax.pretrained import programs

        if flags.language_model or flags.half or flags.licence or flags.push or flags.private:
            raise ValueError(f"--format={flags.format} takes --vocoder and --output alone: leave out the other flags")
        codec = model_folder.load(flags.run_folder, flags.vocoder, dtype="float32")
        for line in programs.save_programs(codec, flags.output, flags.format):
            show(f"{flags.output}: {line}")
        return
    if flags.push:
        hub.require_login(flags.push)
    elif flags.private:
        raise ValueError("--private has no meaning without --push=OWNER/NAME: leave it out")

    codec = model_folder.export(
        flags.run_folder,
        vocoder=flags.vocoder,
        language_model=flags.language_model,
        output=flags.output,
        half=flags.half,
        licence=flags.licence,
    )
    show(f"{flags.output}: {', '.join(codec.components)}; weight hash {codec.weight_hash[:12]}")
    if not flags.half and all(map(export_folder.is_half, codec.components.values())):
        show(f"{flags.output}: in float32; float16 holds these weights exactly, and --half halves the file")
    if flags.push:
        for line in export_folder.publish(flags.output, flags.push, flags.private):
            show(f"{flags.output}: {line}")


def _describe_option(option: str) -> str:
    """Returns the meaning of an option of `bandtok import` for each format that has it."""
    meanings = {name: entry.options.get(option) for name, entry in importers.FORMATS.items()}
    return "; ".join(f"{name}: {meaning}" for name, meaning in meanings.items() if meaning)


@verb(
    "import",
    "make an export of weights that other software has trained",
    "bandtok import weights_44khz_8kbps_0.0.1.pth --from=dac -o models/dac",
    flag("weights", metavar="WEIGHTS", nargs="+", help="file or folder of weights; nothing in it is executed"),
    flag(
        "--from", dest="format", required=True, choices=importers.FORMATS,
        help="; ".join(f"{name}: {', '.join(entry.files)}" for name, entry in importers.FORMATS.items()),
    ),
    *(flag(f"--{option}", action="store_true", help=_describe_option(option)) for option in OPTIONS),
    flag("--output", "-o", required=True, metavar="DIR"),
)  # fmt: skip
def import_weights(flags: argparse.Namespace) -> None:
    """Runs `bandtok import`."""
    from bandtok_jax.codecs.registry import assemble
    from bandtok_jax.pretrained import export_folder

    components = importers.read(flags.format, flags.weights, **{name: getattr(flags, name) for name in OPTIONS})
    if licence := importers.FORMATS[flags.format].licence:
        show(f"{flags.output}: licence of the weights: {licence}")
    if "tokenizer" not in components:
        export_folder.save_parts(components, flags.output)
        for role, part in components.items():
            mel = part.mel
            show(
                f"{flags.output}: {role}, {mel.mels} mel bands of {mel.sample_rate_hz} Hz, {mel.hop_samples} samples a "
                f'frame, padding "{mel.padding}"; weight hash {part.weight_hash[:12]}'
                + ("; give it a tokenizer of that mel" if role == "vocoder" else "")
            )
        return
    codec = assemble(components)
    export_folder.save_codec(codec, flags.output)
    show(
        f"{flags.output}: {', '.join(components)}, {codec.rows} rows of {codec.codebook_size} codes at "
        f"{codec.sample_rate_hz} Hz, {codec.bits_per_second / 1000:.2f} kbit/s; weight hash {codec.weight_hash[:12]}"
    )
    absent = importers.FORMATS[flags.format].files[len(flags.weights) :]
    if absent and not codec.can_decode:
        show(f"{flags.output}: no vocoder, so codes cannot be decoded to audio; give its weights too, {absent[0]}")
