"""Regions that a language model fills in, beside its continuation from the left and copies of the neighbouring columns.

    python benchmarks/editing.py --model=runs/tokenizer --language-model=runs/lm --tokens=data/tokens

The language model was trained with `loss.infill_fraction`. Windows of the validation tokens, spread evenly over the
tracks, lose the codes of a region, and these columns have two metrics:

- nats for each code of the region, of the whole model (`infill`) and of the same model from left to right (`causal`),
  which reads the columns before the region and the rows below each code, but nothing after,
- the mean absolute difference of the log-mels in the region that are decoded from the true codes and from sampled ones:
  `infill`, `causal` (with the known cells of its columns), and `copy`, the nearest column before or after the region,
  or the rows below it.

The regions are `middle` (all rows of the middle of a window), `short` (two columns of it), `band` (some of the rows of
the middle), `top` (the higher half of the rows of a whole window) and `start` (all rows at the beginning of a window).
--control gives a further row of nats from left to right, of a model that was trained without infilling.
"""

import argparse
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from timing import emit

import bandtok_jax
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.data_pipelines.token_source import TokenSource
from bandtok_jax.generation import editing
from bandtok_jax.generation.autoregressive import Generator, attention_spans, padded_known
from bandtok_jax.generation.decoding import decode_steps
from bandtok_jax.models.infilling import MASK, Surroundings
from bandtok_jax.models.language_model import first_token

SAMPLING = {"temperature": 1.0, "top_k": 250}
SPACING = 2  # distance of windows, in window lengths
SHORT_COLUMNS = 2
BATCH = 8  # affects speed and memory alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="tokenizer")
    parser.add_argument("--language-model", required=True)
    parser.add_argument("--control", help="a language model to compare from left to right")
    parser.add_argument("--tokens", required=True)
    flags = parser.parse_args()
    codec = bandtok_jax.load(flags.model, language_model=flags.language_model)
    codec.check_editable()
    control = bandtok_jax.load(flags.model, language_model=flags.control) if flags.control else None
    source = TokenSource(flags.tokens, "validation")
    tracks = [source[number]["codes"] for number in range(len(source))]
    for name, (region, first, stop) in _regions(codec).items():
        windows, _ = _windows(tracks, len(region))
        models = {"infill": codec, "causal": codec} | ({"control": control} if control else {})
        for method, model in models.items():
            losses = _losses(model, windows, region, first, stop, infill=method == "infill")
            _emit("nats", "nats per code", losses, region=name, method=method)
    true_mels = [codec.decode_mel(track) for track in tracks]
    for name, (region, first, stop) in _regions(codec).items():
        windows, places = _windows(tracks, len(region))
        edited = {
            "infill": _infill(codec, windows, region),
            "causal": _causal(codec, windows, region, first, stop),
            "copy": _copy(windows, region, first, stop),
        }
        for method, codes in edited.items():
            assert (codes[:, ~region] == windows[:, ~region]).all()
            distances = _mel_distances(codec, tracks, true_mels, codes, region, places)
            _emit("mel_distance", "nats", distances, region=name, method=method)
            _emit("equal", "share", (codes == windows)[:, region].mean(1), region=name, method=method)


def _regions(codec: Codec) -> Mapping[str, tuple[np.ndarray, int, int]]:
    """Returns cells `[T, F]` of a window, and the first and the last column of the region, by name."""
    longest, rows = codec.language_model.config.data.columns, codec.rows
    columns = longest // 4
    window, middle = longest - columns, (longest - 2 * columns) // 2
    shapes = {
        "middle": (window, middle, middle + columns, 0, rows),
        "short": (window, window // 2, window // 2 + SHORT_COLUMNS, 0, rows),
        "band": (window, middle, middle + columns, rows // 3, 2 * rows // 3),
        "top": (longest // 2, 0, longest // 2, rows // 2, rows),
        "start": (window, 0, columns, 0, rows),
    }
    result = {}
    for name, (length, first, stop, low, high) in shapes.items():
        region = np.zeros((length, rows), bool)
        region[first:stop, low:high] = True
        result[name] = region, first, stop
    return result


def _windows(tracks: list[np.ndarray], columns: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Returns windows `[N, T, F]` from the middle of tracks, and the track and the first column of each."""
    places = [
        (number, start)
        for number, track in enumerate(tracks)
        for start in range(columns, len(track) - 2 * columns, SPACING * columns)
    ]
    return np.stack([tracks[number][start : start + columns] for number, start in places]), places


def _losses(codec: Codec, windows: np.ndarray, region: np.ndarray, first: int, stop: int, infill: bool) -> np.ndarray:
    """Returns the mean loss of the codes of the region in each window, `[N]`."""
    generator = codec.language_model.generator
    end, columns = codec.codebook_size, windows.shape[1] + stop - first

    @jax.jit
    def losses(codes: jax.Array) -> jax.Array:
        options, counted = {}, jnp.asarray(region)
        if infill:
            padding = ((0, 0), (0, columns - codes.shape[1]), (0, 0))
            around = jnp.pad(jnp.where(region, end + MASK, codes), padding)
            numbers = (jnp.full(len(codes), number) for number in (codes.shape[1], first))
            options = {"surroundings": Surroundings(around, *numbers)}
            codes = jnp.pad(codes[:, first:], ((0, 0), (0, columns - codes.shape[1] + first), (0, 0)))
            counted = jnp.pad(counted[first:], ((0, columns - len(counted) + first), (0, 0)))
        logits = generator.network.apply(
            generator.parameters, {}, codes, *_text(generator, len(codes)), begins=False, **options
        )  # fmt: skip
        shares = jax.nn.log_softmax(logits[:, :-1].reshape(*codes.shape, -1))
        taken = -jnp.take_along_axis(shares, codes[..., None], axis=-1)[..., 0]
        return jnp.where(counted, taken, 0).sum((1, 2)) / counted.sum()

    padded = np.pad(windows, ((0, -len(windows) % BATCH), (0, 0), (0, 0)))
    batches = np.split(padded, len(padded) // BATCH)
    return np.concatenate([np.asarray(losses(jnp.asarray(batch))) for batch in batches])[: len(windows)]


def _text(generator: Generator, batch: int) -> tuple:
    """Returns the context without text and its mask, as `LanguageModel` takes them."""
    text = generator.read_text(None, None, batch, False)
    return () if text is None else (text["context"], text["mask"])


def _infill(codec: Codec, windows: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Returns the windows with sampled codes in the region."""
    return editing.fill_in(
        codec.language_model.generator, windows, region, window_columns=codec.language_model.config.data.columns,
        key=jax.random.key(0), begins=False, **SAMPLING,
    )  # fmt: skip


def _causal(codec: Codec, windows: np.ndarray, region: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Returns the windows with codes in the region that are sampled without the columns after it."""
    generator, end = codec.language_model.generator, codec.codebook_size
    network, parameters, batch = generator.network, generator.parameters, len(windows)
    per_step = network.attribute("layout").positions_per_step
    spans = attention_spans(windows.shape[1] * per_step + 1)
    cache = generator.init_cache(batch, spans[-1], guided=False)
    text, begin = generator.read_text(None, None, batch, False), np.full(batch, first_token(end, False), np.int32)
    cache = generator.prefill(cache, begin, windows[:, :first], text, spans, guided=False)
    previous = windows[:, first - 1] if first else np.repeat(begin[:, None], codec.rows, axis=1)
    known = np.where(region[first:stop], -1, windows[:, first:stop])
    numbers = dict(temperature=SAMPLING["temperature"], top_p=1.0, guidance=1.0, may_end=False)
    new, _, _ = decode_steps(
        parameters, cache, jnp.asarray(previous), first, 0, stop - first, jnp.full(batch, windows.shape[1]),
        padded_known(known, spans[-1] // per_step), text, jax.random.key(0), numbers,
        network=network, span=spans[-1], top_k=SAMPLING["top_k"], nucleus=False, guided=False,
    )  # fmt: skip
    result = windows.copy()
    result[:, first:stop] = np.asarray(new)[:, : stop - first]
    return result


def _copy(windows: np.ndarray, region: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Returns the windows with the nearest column outside of the region in place of each of its columns.

    In a region that is as long as its window, the rows below are copied in turn.
    """
    columns, length = np.arange(first, stop), windows.shape[1]
    if stop - first == length:
        low = int(region[0].argmax())
        rows = np.where(region[0], np.arange(windows.shape[2]) % low, np.arange(windows.shape[2]))
        return windows[:, :, rows]
    before = (columns - first < stop - columns) if first and stop < length else np.full(len(columns), first > 0)
    result = windows.copy()
    copied = windows[:, np.where(before, first - 1, min(stop, length - 1))]
    result[:, first:stop] = np.where(region[first:stop], copied, windows[:, first:stop])
    return result


def _mel_distances(
    codec: Codec, tracks: list[np.ndarray], true_mels: list[np.ndarray], codes: np.ndarray, region: np.ndarray,
    places: list[tuple[int, int]],
) -> np.ndarray:  # fmt: skip
    """Returns the mean absolute log-mel difference in the region of each window, in its track, `[N]`."""
    edited = [track.copy() for track in tracks]
    for window, (number, start) in zip(codes, places):
        edited[number][start : start + len(window)] = window
    mels = [codec.decode_mel(track) for track in edited]
    frames, bins = (size // count for size, count in zip(mels[0].shape, tracks[0].shape))
    cells = np.repeat(np.repeat(region, frames, axis=0), bins, axis=1)
    distances = []
    for number, start in places:
        part = slice(start * frames, (start + len(region)) * frames)
        distances.append(np.abs(mels[number][part] - true_mels[number][part])[cells].mean())
    return np.array(distances)


def _emit(name: str, unit: str, values: np.ndarray, **fields: object) -> None:
    """Prints the mean, and a range of two standard errors of it."""
    mean, error = values.mean(), values.std() / np.sqrt(len(values))
    emit(name, unit, mean, mean - 2 * error, mean + 2 * error, windows=len(values), **fields)


if __name__ == "__main__":
    main()
