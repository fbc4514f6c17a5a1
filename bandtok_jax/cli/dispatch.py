"""The command line: verbs that call one function and print what it found.

Whatever is slow to import is imported inside the verb that needs it, so that `bandtok --help` answers at once.
"""

import argparse
from collections.abc import Sequence
import contextlib
import errno
import functools
import json
import os
import shutil
import signal
import sys
import threading
import warnings

from bandtok_jax.cli import verbs
from bandtok_jax.runtime import compile_cache, foreign_errors
from bandtok_jax.runtime.compile_cache import COMPILING

_CURES = {
    errno.ENOSPC: "free some space",
    errno.EACCES: "choose a place you may read and write",
    errno.EROFS: "choose a place you may write to",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "give a file, not a folder",
    errno.EEXIST: "choose another name",
    errno.EMFILE: "allow more open files:  ulimit -n 4096",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns 0, or 1 after a one-line error. Usage errors leave with 2."""
    code = _main(arguments)
    if arguments is None and any(thread.name == COMPILING for thread in threading.enumerate()):
        _leave_at_once(code)
    return code


def _leave_at_once(code: int) -> None:
    """Ends the program while programs compile that nobody will run: Python would wait minutes for them."""
    from bandtok_jax.training import distributed

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    distributed.leave_at_once(code)


def _main(arguments: Sequence[str] | None) -> int:
    flags, rest = verbs.parser().parse_known_args(sys.argv[1:] if arguments is None else arguments)
    if rest and not flags.free:
        flags.parser.error(f"unknown arguments: {' '.join(rest)}")
    if flags.free:
        flags.rest = rest
    verbs.expand_home(flags)
    missing = _first_missing(getattr(flags, "workdir", None) or getattr(flags, "output", None))
    warnings.formatwarning = _note
    compile_cache.enable()
    try:
        code = _RUN[flags.verb](flags) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # such as that of  bandtok config ... | head
        sys.stdout = open(os.devnull, "w")  # else the interpreter fails again at its end
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        if arguments is None:  # this is the whole program, whose end may take a moment: a second Ctrl-C need not wait
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        _print("bandtok: interrupted", file=sys.stderr)
        return 130
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        if os.environ.get("BANDTOK_DEBUG"):
            raise
        _print(f"bandtok: error: {_one_line(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        line = foreign_errors.explain(error, flags.verb)
        if line is None or os.environ.get("BANDTOK_DEBUG"):
            raise
        _print(f"bandtok: error: {line}", file=sys.stderr)
        return 1
    finally:
        _remove_if_empty(missing)


def _note(message, *_, **__) -> str:
    from bandtok_jax.runtime.untrusted import one_line

    return f"bandtok: note: {one_line(message)}\n"


def _first_missing(path: str | None) -> str | None:
    """The topmost folder of a local path that is not there yet."""
    if not path or "://" in path or os.path.exists(path):
        return None
    above = os.path.dirname(os.path.abspath(path))
    return path if os.path.exists(above) else _first_missing(above)


def _remove_if_empty(folder: str | None) -> None:
    """Removes a folder that was made for nothing: a refused verb leaves none behind."""
    if folder and os.path.isdir(folder) and not any(files for _, _, files in os.walk(folder)):
        shutil.rmtree(folder, ignore_errors=True)


def _print(text: object, **options) -> None:
    """Prints lines in which names and captions of others reach no terminal with control characters."""
    from bandtok_jax.runtime.untrusted import printable

    print("\n".join(map(printable, str(text).split("\n"))), **options)


def _one_line(error: Exception) -> str:
    from bandtok_jax.runtime import untrusted

    if isinstance(error, OSError) and error.errno and error.filename:
        cure = _CURES.get(error.errno, "check the path and the disk")
        return untrusted.one_line(f"{error.filename}: {error.strerror.lower()}; {cure}")
    return untrusted.one_line(error) or type(error).__name__


def _load(flags: argparse.Namespace):
    import bandtok_jax
    from bandtok_jax.runtime import startup

    names = ("vocoder", "language_model", "dtype")
    codec = bandtok_jax.load(flags.model, **{name: getattr(flags, name, None) or "" for name in names})
    dtypes = (stage.computed_in for stage in codec.stages.values())
    startup.announce(*dtypes, spread="one track on each device" if flags.verb == "tokenize" else "one device")
    return codec


def _train(flags):
    overrides = verbs.overrides(flags.rest, flags.parser)
    from bandtok_jax.config import experiment
    from bandtok_jax.launch.processes import RESTART_EXIT_CODE
    from bandtok_jax.training import distributed, loop

    config = experiment.load_config(flags.config, overrides)
    if "://" in flags.workdir:
        raise ValueError(f"--workdir={flags.workdir}: a run folder lies on a disk; data and tokens may be in a bucket")
    distributed.start(flags.start_timeout)
    try:
        loop.train(
            config, flags.workdir, init_from=flags.init_from, overfit_one_batch=flags.overfit_one_batch,
            accept_changed_data=flags.accept_changed_data, profile_steps=flags.profile_steps, verbose=flags.verbose,
        )  # fmt: skip
    except distributed.Preempted as notice:
        _print(f"bandtok: preempted: {notice}; the same command resumes it", file=sys.stderr)
        return RESTART_EXIT_CODE
    except distributed.Interrupted as notice:
        _print(f"bandtok: interrupted: {notice}; the same command resumes it", file=sys.stderr)
        return distributed.INTERRUPTED_EXIT_CODE


def _config(flags):
    overrides = verbs.overrides(flags.rest, flags.parser)
    os.environ["JAX_PLATFORMS"] = "cpu"  # networks are described, and nothing is run
    from bandtok_jax.commands import describe_config
    from bandtok_jax.config import experiment

    config = experiment.load_config(flags.name, overrides)
    _print(json.dumps(experiment.plain(config), indent=2) if flags.json else describe_config.text(flags.name, config))


def _plan(flags):
    overrides = verbs.overrides(flags.rest, flags.parser)
    os.environ["JAX_PLATFORMS"] = "cpu"  # a plan runs nothing, and must not wait for accelerators that others use
    from bandtok_jax.config import experiment
    from bandtok_jax.planning import plan, plan_text, search
    from bandtok_jax.runtime import accelerators

    config = experiment.load_config(flags.config, overrides)
    machines = accelerators.parse(flags.topology).check_shape()
    say = lambda what: _print(f"bandtok: {what} ...", file=sys.stderr, flush=True)
    if flags.weak_scaling:
        plans = search.weak_scaling(config, machines, say, quick=flags.quick)
        _print(plan_text.as_json(plans) if flags.json else plan_text.table(plans))
        return 0 if all(found.fits for found in plans) else 1
    say("compiling takes minutes" if machines.facts["kind"] == "tpu" else "tracing")
    found = plan.plan(config, machines, quick=flags.quick)
    _print(plan_text.as_json([found]) if flags.json else plan_text.text(found, flags.config), flush=True)
    if found.fits:
        return None
    changes, cured = search.cure(config, machines, found, say, quick=flags.quick)
    if cured is None:
        tried = f" (tried up to {search.as_flags(changes)})" if changes else ""
        raise ValueError(f"it does not fit, nor with less memory for each example{tried}: take more or larger chips")
    if flags.json:  # one document, of what was asked for
        _print(f"bandtok: it fits with {search.as_flags(changes)}", file=sys.stderr)
    else:
        _print(f"\nit fits with {search.as_flags(changes)}:\n\n{plan_text.text(cured, flags.config)}")
    return 1


def _evaluate(flags):
    from bandtok_jax.commands import evaluate

    for line in (evaluate.tokens if flags.what == "tokens" else evaluate.evaluate)(flags):
        _print(line)


def _prepare(flags):
    from bandtok_jax.data_pipelines import prepare

    manifest = prepare.prepare(
        flags.sources, flags.output, tracks=flags.tracks, workers=flags.workers, clip_seconds=flags.clip_seconds,
        validation_share=flags.validation_share, sample_rate_hz=flags.sample_rate, channels=flags.channels,
        tfds_dir=flags.tfds_dir, clips=flags.clips, overwrite=flags.overwrite, runner=flags.runner,
        runner_options=flags.runner_option,
    )  # fmt: skip
    for name, split in manifest["splits"].items():
        _print(f"{flags.output}: {name}: {split['tracks']} tracks, {split['hours']:.2f} h, {split['records']} records")
    for entry in manifest["left_out"]:
        _print(f"left out: {entry['track']}: {entry['reason']}")
    if manifest["other_files"]:
        _print("not read: " + ", ".join(f"{count} x {ending}" for ending, count in manifest["other_files"].items()))
    for note in manifest["notes"]:
        _print(f"note: {note}")


def _doctor(flags):
    from bandtok_jax.data_pipelines import doctor, token_doctor
    from bandtok_jax.data_pipelines.token_manifest import MANIFEST
    from bandtok_jax.runtime import storage

    if MANIFEST in storage.names(flags.data):
        _print(token_doctor.report(flags.data, flags.columns))
        return
    _print(doctor.report(doctor.inspect(flags.data, flags.clip_samples)))


def _tokenize(flags):
    import jax

    from bandtok_jax.commands import tokenize_corpus
    from bandtok_jax.training import distributed

    distributed.start()
    manifest = tokenize_corpus.tokenize(
        _load(flags), flags.data, flags.output, offsets=flags.offsets, pieces=flags.pieces, tokenizer=flags.model,
        embeddings=flags.embeddings, skip_damaged=flags.skip_damaged,
    )  # fmt: skip
    if jax.process_index() > 0:
        return  # process 0 speaks for all
    for split, counts in manifest["splits"].items():
        hours = counts["columns"] / manifest["columns_per_second"] / 3600
        _print(f"{flags.output}: {split}: {counts['records']} records, {counts['columns']} columns, {hours:.2f} h")
    for entry in manifest["left_out"]:
        _print(f"left out: {entry['track']}: {entry['reason']}")


def _encode(flags):
    from bandtok_jax.commands import code_files
    from bandtok_jax.runtime import atomic_file

    target = flags.output or atomic_file.derived(os.path.splitext(flags.sound)[0] + ".bt")
    as_dac = os.path.splitext(target)[1].lower() == ".dac"
    if flags.window is not None and not (as_dac and flags.window > 0):
        raise ValueError("--window is for .dac files, and above 0: codes of a .bt file are those of the whole sound")
    codec = _load(flags)
    if as_dac:
        made = code_files.encode_dac(codec, flags.sound, target, flags.levels, flags.window)
        channels, columns, rows = made.codes.shape
        _print(
            f"{target}: {channels} channel{'s' * (channels > 1)} of {columns} columns x {rows} rows, "
            f"{made.samples / made.sample_rate_hz:.2f} s, {os.path.getsize(target)} bytes"
        )
        return
    header = code_files.encode(codec, flags.sound, target, flags.levels)
    rate = codec.bits_per_second * header.rows / codec.rows
    seconds = header.samples / header.sample_rate_hz
    _print(
        f"{target}: {header.columns} columns x {header.rows} rows, {seconds:.2f} s, {os.path.getsize(target)} bytes, "
        f"{rate / 1000:.2f} kbit/s"
    )


def _decode(flags):
    from bandtok_jax.commands import code_files
    from bandtok_jax.runtime import atomic_file

    target = flags.output or atomic_file.derived(os.path.splitext(flags.codes)[0] + ".wav")
    codec = _load(flags)
    if code_files.dac_file.is_one(flags.codes):
        samples, rate, clipped = code_files.decode_dac(codec, flags.codes, target, flags.levels)
    else:
        header, clipped = code_files.decode(codec, flags.codes, target, flags.levels)
        samples, rate = header.samples, header.sample_rate_hz
    _print(f"{target}: {samples / rate:.2f} s at {rate} Hz{_clipped(clipped)}")


def _reconstruct(flags):
    from bandtok_jax.commands import code_files

    codec = _load(flags)
    found = code_files.reconstruct(codec, flags.sound, flags.output, flags.levels)
    _print(
        f"{flags.output}: {found.samples / codec.sample_rate_hz:.2f} s; level {found.original_level_db:.1f} dB -> "
        f"{found.reconstruction_level_db:.1f} dB; log-mel distance {found.mel_distance:.3f} nats"
        f"{_clipped(found.clipped_samples)}"
    )


def _generate(flags):
    from bandtok_jax.commands import code_files
    from bandtok_jax.generation import SAMPLING

    sampling = {name: getattr(flags, name) for name in (*SAMPLING, "may_end")}
    codec = _load(flags)
    if flags.embedding:
        sampling["embedding"] = code_files.read_embedding(codec, flags.embedding)
    pieces = code_files.generate(
        codec, flags.output, prompt=flags.prompt, seconds=flags.seconds, seed=flags.seed, beginning=flags.beginning,
        count=flags.count, **sampling,
    )  # fmt: skip
    for path, samples, columns, clipped in pieces:
        _print(f"{path}: {samples / codec.sample_rate_hz:.2f} s, {columns} columns{_clipped(clipped)}")


def _clipped(samples: int) -> str:
    return f"; {samples} samples clipped" if samples else ""


def _export(flags):
    from bandtok_jax.pretrained import model_folder

    codec = model_folder.export(
        flags.run_folder, vocoder=flags.vocoder, language_model=flags.language_model, output=flags.output
    )
    _print(f"{flags.output}: {', '.join(codec.stages)}; weight hash {codec.weight_hash[:12]}")


def _import(flags):
    from bandtok_jax.pretrained import import_dac, import_vocos, model_folder

    readers = {
        "dac": functools.partial(import_dac.read_official, parity=flags.parity),
        "dac-hf": functools.partial(import_dac.read_transformers, parity=flags.parity),
        "vocos": import_vocos.read,
    }
    if flags.parity and flags.kind == "vocos":
        raise ValueError("--parity is about the length of DAC's sound: leave it out for a vocoder")
    stage = readers[flags.kind](flags.weights)
    if stage.name == "vocoder":
        model_folder.save_vocoder(stage, flags.output)
        mel = stage.mel
        _print(
            f"{flags.output}: vocoder, {mel.mels} mel bands of {mel.sample_rate_hz} Hz, {mel.hop_samples} samples a "
            f'frame, padding "{mel.padding}"; weight hash {stage.weight_hash[:12]}; use it with a tokenizer of that mel'
        )
        return
    codec = model_folder.join({stage.name: stage})
    model_folder.save(codec, flags.output)
    _print(
        f"{flags.output}: {stage.name}, {codec.rows} rows of {codec.codebook_size} codes at {codec.sample_rate_hz} Hz, "
        f"{codec.bits_per_second / 1000:.2f} kbit/s; weight hash {codec.weight_hash[:12]}"
    )


_RUN = {
    "prepare": _prepare,
    "doctor": _doctor,
    "train": _train,
    "config": _config,
    "plan": _plan,
    "tokenize": _tokenize,
    "encode": _encode,
    "decode": _decode,
    "reconstruct": _reconstruct,
    "generate": _generate,
    "evaluate": _evaluate,
    "export": _export,
    "import": _import,
}
