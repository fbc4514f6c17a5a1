"""The verbs that make and inspect training data: prepare, doctor, tokenize."""

import argparse

from bandtok_jax.cli import models
from bandtok_jax.cli.messages import resumable, show
from bandtok_jax.cli.parser import flag, verb
from bandtok_jax.runtime import extras


@verb(
    "prepare",
    "make training records from music",
    "bandtok prepare ~/music --output data/music",
    flag("sources", nargs="+", metavar="SOURCE", help="a folder, a file, tfds:NAME, synthetic[:TRACKS]"),
    flag("--output", "-o", required=True, metavar="DIR", help="a folder, or gs://BUCKET/FOLDER"),
    flag("--tracks", metavar="CSV", help="table with the columns file, split, licence, caption, domain, ends, lyrics"),
    flag("--clips", action="store_true", help="the files are clips of longer tracks, whose ends teach nothing"),
    flag(
        "--licence", action="append", default=[], metavar="NAME",
        help="leave out tracks to which the CSV gives another licence or none; may be repeated",
    ),
    flag(
        "--validation-share", type=float, default=0.1, metavar="X",
        help="share of the tracks whose split no CSV names (default 0.1)",
    ),
    flag("--clip-seconds", type=float, default=6.0, metavar="S", help="length of a record (default 6)"),
    flag("--sample-rate", type=int, default=44_100, metavar="HZ", help="of the records (default 44100)"),
    flag("--channels", type=int, choices=(1, 2), help="of the records (default: those of the file)"),
    flag("--tfds-dir", metavar="DIR", help="folder of prepared TFDS data sets"),
    flag("--workers", type=int, metavar="N", help="processes (default: one for each core, if there is work for it)"),
    flag("--overwrite", action="store_true", help="start again and replace the output folder"),
    flag(
        "--runner", choices=("local", "beam"), default="local",
        help="beam: Apache Beam, on this machine or on many (pip install 'bandtok-jax[beam]')",
    ),
    flag(
        "--runner-option", action="append", default=[], metavar="OPTION",
        help="of Beam, such as --runner-option=--runner=DataflowRunner; may be repeated",
    ),
    extra="data",
)  # fmt: skip
@resumable()
def prepare(flags: argparse.Namespace) -> None:
    """Runs `bandtok prepare`."""
    extras.require_all("data", "bandtok prepare")
    from bandtok_jax.data_pipelines import prepare

    manifest = prepare.prepare(
        flags.sources, flags.output, tracks=flags.tracks, workers=flags.workers, clip_seconds=flags.clip_seconds,
        validation_share=flags.validation_share, sample_rate_hz=flags.sample_rate, channels=flags.channels,
        tfds_dir=flags.tfds_dir, clips=flags.clips, licences=flags.licence, overwrite=flags.overwrite,
        runner=flags.runner, runner_options=flags.runner_option,
    )  # fmt: skip
    for name, split in manifest["splits"].items():
        show(f"{flags.output}: {name}: {split['tracks']} tracks, {split['hours']:.2f} h, {split['records']} records")
    _show_left_out(manifest)
    if manifest["other_files"]:
        show("not read: " + ", ".join(f"{count} x {ending}" for ending, count in manifest["other_files"].items()))
    for note in manifest["notes"]:
        show(f"note: {note}")


@verb(
    "doctor",
    "inspect prepared records and the crops that a model trains on",
    "bandtok doctor --data data/music",
    flag("--data", required=True, metavar="DIR", help="prepared records, or tokens"),
    flag(
        "--clip-samples", type=int, default=65_536, metavar="N",
        help="length of a crop, as data.clip_samples (default 65536)",
    ),
    flag("--channels", type=int, choices=(1, 2), default=1, help="of a crop, as data.channels (default 1)"),
    flag(
        "--columns", type=int, default=108, metavar="N",
        help="length of a crop of tokens, as data.columns (default 108)",
    ),
    extra="data",
)  # fmt: skip
def doctor(flags: argparse.Namespace) -> None:
    """Runs `bandtok doctor`."""
    from bandtok_jax.data_pipelines import doctor, token_doctor
    from bandtok_jax.data_pipelines.token_manifest import MANIFEST
    from bandtok_jax.runtime import storage

    if MANIFEST in storage.names(flags.data):
        show(token_doctor.report(flags.data, flags.columns))
    else:
        show(doctor.report(doctor.inspect(flags.data, flags.clip_samples, flags.channels)))


@verb(
    "tokenize",
    "encode a whole corpus to token records, on all hosts and devices",
    "bandtok tokenize --model=runs/tokenizer --data=data/music --output=data/tokens --offsets=4",
    models.MODEL,
    flag("--data", required=True, metavar="DIR", help="prepared records, or 'synthetic'"),
    flag("--output", "-o", required=True, metavar="DIR", help="a folder that all processes share, or in a bucket"),
    flag("--offsets", type=int, default=1, metavar="N", help="shifted copies of each training track (default 1)"),
    flag("--embeddings", metavar="NPZ", help="text embeddings [L, E] of the tracks, by track name"),
    flag(
        "--pieces",
        dest="synthetic_tracks",
        type=int,
        default=256,
        metavar="N",
        help="number of synthetic tracks (default 256)",
    ),
    flag("--skip-damaged", action="store_true", help="leave out tracks with a record that cannot be read"),
    extra="train",
)
@resumable()
def tokenize(flags: argparse.Namespace) -> None:
    """Runs `bandtok tokenize`."""
    import jax

    from bandtok_jax.commands import tokenize_corpus
    from bandtok_jax.pretrained import hub
    from bandtok_jax.training import distributed

    distributed.start()
    codec = models.load_codec(flags, only=("tokenizer",), spread="one track on each device")
    source = codec.components["tokenizer"].source_path if hub.is_hub(flags.model) else flags.model
    manifest = tokenize_corpus.tokenize(
        codec, flags.data, flags.output, offsets=flags.offsets, synthetic_tracks=flags.synthetic_tracks,
        tokenizer=source, embeddings=flags.embeddings, skip_damaged=flags.skip_damaged,
    )  # fmt: skip
    if jax.process_index() > 0:
        return  # process 0 prints for all
    for split, counts in manifest["splits"].items():
        hours = counts["columns"] / manifest["columns_per_second"] / 3600
        show(f"{flags.output}: {split}: {counts['records']} records, {counts['columns']} columns, {hours:.2f} h")
    _show_left_out(manifest)


def _show_left_out(manifest: dict) -> None:
    for entry in manifest["left_out"]:
        show(f"left out: {entry['track']}: {entry['reason']}")
