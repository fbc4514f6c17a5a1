"""A verb on many files in one process: one output for each input, in a folder that keeps the tree of the inputs."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
import contextlib
import os
from typing import NamedTuple

from bandtok_jax.audio.audio_file import ENDINGS, AudioFile, UnreadableAudio
from bandtok_jax.audio.signatures import FFMPEG_ENDINGS
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.devices import spread
from bandtok_jax.commands import files
from bandtok_jax.runtime import file_tree, untrusted
from bandtok_jax.runtime.progress import progress_bar

# Files of the second kind are named as not readable where ffmpeg is not installed.
AUDIO_ENDINGS = frozenset(ENDINGS) | frozenset(FFMPEG_ENDINGS)
CODE_ENDINGS = frozenset((".bt", ".dac"))


class Job(NamedTuple):
    """An input and its output."""

    source: str
    target: str


def plan(
    paths: Sequence[str], output: str | None, endings: Collection[str], new_ending: str
) -> tuple[list[Job], dict[str, int]]:
    """Finds the inputs and names the outputs.

    Args:
      paths: files, which are all inputs, and folders, whose files with one of `endings` are inputs.
      output: the folder of the outputs. It may lie in one of the folders, and is left out there.
      new_ending: ending of the outputs.

    Returns:
      The jobs, and the number of other files in the folders by their ending.

    Raises:
      ValueError: no inputs, or an output that belongs to two inputs or is an input itself.
    """
    if not output:
        raise ValueError(f"{len(paths)} paths or a folder: name the folder of the results with -o DIR")
    if os.path.isfile(output):
        raise ValueError(f"{output} is a file, and there may be several results: name a folder with -o DIR")
    if files.ending(output) in AUDIO_ENDINGS | CODE_ENDINGS and not os.path.isdir(output):
        raise ValueError(
            f"{output} is the name of a file, and there may be several results: name a folder with -o DIR, or "
            f"{output}/ for a folder of this name"
        )
    others: Counter[str] = Counter()
    jobs: dict[str, Job] = {}
    for path in paths:
        below = _below(path, output, endings, others) if os.path.isdir(path) else [os.path.basename(path)]
        for name in below:
            source = os.path.join(path, name) if os.path.isdir(path) else path
            target = os.path.normpath(os.path.join(output, os.path.splitext(name)[0] + new_ending))
            earlier = jobs.setdefault(target, Job(source, target))
            if os.path.realpath(earlier.source) != os.path.realpath(source):
                raise ValueError(
                    f"{earlier.source} and {source} would both become {target}: rename one of them, or name another "
                    "folder for it in a call of its own"
                )
    if not jobs:
        kinds = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
        examples = sorted(set(endings) & {".wav", ".flac", ".mp3", ".bt", ".dac"})
        raise ValueError(
            f"no files to read in {', '.join(paths)}{f', only others ({kinds})' if kinds else ''}: "
            f"their names must end with {', '.join(examples)} ..."
        )
    sources = {os.path.realpath(job.source) for job in jobs.values()}
    for target in jobs:
        if os.path.realpath(target) in sources:
            raise ValueError(f"{target} is an input itself, which would be lost: name another folder with -o DIR")
    return list(jobs.values()), dict(sorted(others.items()))


def _below(folder: str, output: str, endings: Collection[str], others: Counter[str]) -> list[str]:
    """Returns the sorted names of the inputs below a folder, without those in `output`; counts the other files."""
    own, root, names = os.path.realpath(output), os.path.realpath(folder), []
    for place, files_here in file_tree.walk(folder):
        real = os.path.realpath(place)
        if own.startswith(os.path.join(root, "")) and own != root and os.path.commonpath([own, real]) == own:
            continue
        for name in files_here:
            ending = files.ending(name)
            if ending in endings:
                names.append(os.path.relpath(os.path.join(place, name), folder))
            else:
                others[untrusted.printable(ending) or "no ending"] += 1
    return sorted(names)


def _may_be_original(job: Job) -> bool:
    """Returns whether a result is there that may be the original of its codes, as song.wav beside song.bt."""
    beside = os.path.realpath(os.path.dirname(job.source)) == os.path.realpath(os.path.dirname(job.target))
    return beside and files.ending(job.target) in AUDIO_ENDINGS and os.path.exists(job.target)


def is_audio(path: str) -> bool:
    """Returns whether an audio file is there, as far as its header shows."""
    try:
        with AudioFile(path):
            return True
    except UnreadableAudio:
        return False


def run(
    codec: Codec,
    jobs: Sequence[Job],
    work: Callable[[Codec, str, str], str],
    is_complete: Callable[[str], bool],
    *,
    overwrite: bool = False,
) -> Iterator[str]:
    """Runs the jobs on all devices, and yields a line for each output and each input that was left out.

    Args:
      work: makes the output of an input, both as paths, and returns the line about it.
      is_complete: tells the outputs of earlier calls, which are skipped.
      overwrite: make them again.

    Raises:
      ValueError: at the end, where inputs were left out; or at once, where the original of codes could be overwritten.
      OSError: at once, where an output cannot be written.
    """
    for job in filter(_may_be_original, jobs if overwrite else ()):
        raise ValueError(f"{job.target} may be the original of {job.source}: name another folder with -o DIR")
    remaining = [job for job in jobs if overwrite or not is_complete(job.target)]
    skipped, left_out = len(jobs) - len(remaining), []
    if skipped and any(map(_may_be_original, jobs)):
        yield (
            f"{skipped} of {len(jobs)} results are skipped: files of their names are there, which may be the "
            "originals; name another folder with -o DIR"
        )
    elif skipped:
        yield f"{skipped} of {len(jobs)} results are there already and are skipped; --overwrite makes them again"

    def attempt(codec: Codec, job: Job) -> tuple[str, str]:
        os.makedirs(os.path.dirname(job.target) or ".", exist_ok=True)
        try:
            return work(codec, job.source, job.target), ""
        except ValueError as error:
            return "", str(error)
        except OSError as error:
            # Errors of writing name the output, or have no number; those of a disk that is read may lack a name.
            if error.errno is None or error.filename not in (None, job.source):
                raise
            return "", f"{job.source}: {str(error.strerror).lower()}; check the path and its permissions"

    with (
        progress_bar(total=len(jobs), initial=skipped, unit="file", leave=False) as bar,
        contextlib.closing(spread(codec, attempt, remaining)) as results,
    ):
        for line, problem in results:
            if problem:
                left_out.append(problem)
            yield untrusted.printable(line or f"left out: {problem}")  # names may hold ends of lines
            bar.update()
    if left_out:
        raise ValueError(
            f"{len(left_out)} of {len(jobs)} files were left out, the first because: {left_out[0]}; "
            "the same command makes only the missing results"
        )
