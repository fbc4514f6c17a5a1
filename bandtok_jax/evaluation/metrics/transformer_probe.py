"""A small transformer that predicts labels from codes, trained once for each fold of the tracks.

Letters: B batch, N tracks, L columns of a window, T columns, F rows of the grid, K codes, D width.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bandtok_jax.layers.linear import STANDARD_DEVIATION, Linear
from bandtok_jax.layers.network import Network
from bandtok_jax.layers.norm import RMSNorm
from bandtok_jax.layers.rope import rope_angles
from bandtok_jax.layers.transformer import Block
from bandtok_jax.runtime.progress import progress_bar

# All are our choices: seconds of training on a CPU for a few hundred tracks.
WINDOW_SECONDS = 4.0
POSITIONS = 64  # of the sequence at most, so that codecs of all column rates cost the same
DIM, HEADS, LAYERS, EMBEDDING_DIM = 64, 4, 1, 32
STEPS, BATCH, LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY = 300, 16, 2e-3, 30, 0.1
MASKED_SHARE = 0.5  # of the codes, hidden in training so that the network cannot memorise tracks by rare codes


class Classifier(nnx.Module):
    """Logits of the classes of windows of codes: embeddings of the rows, joined to columns, and transformer blocks.

    Args:
      rows, codebook_size: F and K.
      shared_codebook: the rows share one table of embeddings, as they share the codebook.
      classes: number of classes.
    """

    def __init__(self, rows: int, codebook_size: int, *, shared_codebook: bool, classes: int, rngs: nnx.Rngs):
        tables = 1 if shared_codebook else rows
        self.embeddings = nnx.Param(jax.random.normal(rngs.params(), (tables, codebook_size, EMBEDDING_DIM)))
        self.project = Linear(
            rows * EMBEDDING_DIM, DIM, scale=(rows * EMBEDDING_DIM) ** -0.5 / STANDARD_DEVIATION, rngs=rngs
        )
        self.blocks = nnx.List([Block(DIM, HEADS, 2 * DIM, num_layers=LAYERS, rngs=rngs) for _ in range(LAYERS)])
        self.norm = RMSNorm(DIM, rngs=rngs)
        self.out = Linear(DIM, classes, rngs=rngs)

    def __call__(self, codes: jax.Array, kept: jax.Array) -> jax.Array:
        """Returns logits `[B, classes]` of codes `[B, L, F]`; codes with false in `kept` (same shape) are hidden."""
        B, L, F = codes.shape
        tables = self.embeddings[...]
        rows = jnp.arange(F) if len(tables) > 1 else jnp.zeros(F, jnp.int32)
        embedded = jnp.where(kept[..., None], tables[rows, codes], 0)  # [B, L, F, E]
        columns = self.project(embedded.reshape(B, L, -1))
        group = -(-L // POSITIONS)
        positions = -(-L // group)
        columns = jnp.pad(columns, ((0, 0), (0, positions * group - L), (0, 0)))
        x = columns.reshape(B, positions, group, DIM).mean(2)
        angles = rope_angles(jnp.arange(positions), DIM // HEADS // 2)
        for block in self.blocks:
            x, _ = block(x, angles, causal=False)
        return self.out(self.norm(x).mean(1))


def predict(
    grids: Sequence[np.ndarray],
    classes: np.ndarray,
    folds: np.ndarray,
    *,
    codebook_size: int,
    columns_per_second: float,
    shared_codebook: bool,
    seed: int = 0,
    name: str = "",
) -> np.ndarray:
    """Predicts the class of each track by a network that was trained on the other folds, `[N]`.

    A track is cut into windows of WINDOW_SECONDS, and its logarithms of probabilities are the mean over them.

    Args:
      grids: codes `[T, F]` of each track.
      classes: number of the class of each track, `[N]`.
      folds: fold of each track, `[N]`.
      codebook_size: K.
      columns_per_second: columns of the grid in a second.
      shared_codebook: the rows share one codebook.
      seed: seed of the weights, the batches and the hidden codes.
      name: name of the progress bar.
    """
    length = max(1, round(WINDOW_SECONDS * columns_per_second))
    windows = [_windows(codes, length) for codes in grids]
    number_of_classes = int(classes.max()) + 1
    network = Network(
        lambda rngs: Classifier(
            grids[0].shape[1], codebook_size, shared_codebook=shared_codebook, classes=number_of_classes, rngs=rngs
        )
    )
    optimizer = optax.adamw(
        optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, WARMUP_STEPS, STEPS), weight_decay=WEIGHT_DECAY
    )
    step, log_probabilities = _programs(network, optimizer)
    predicted = np.empty_like(classes)
    with progress_bar(total=STEPS * len(np.unique(folds)), unit="step", desc=name) as bar:
        for fold in np.unique(folds):
            parameters, _ = network.init(jax.random.key(seed))
            state = parameters, optimizer.init(parameters)
            batches = _batches(windows, classes, np.flatnonzero(folds != fold), np.random.default_rng(seed))
            for number in range(STEPS):
                state = step(*state, *next(batches), jax.random.fold_in(jax.random.key(seed), number))
                bar.update()
            for track in np.flatnonzero(folds == fold):
                parts = _padded(windows[track])
                results = np.concatenate([log_probabilities(state[0], part) for part in parts])
                predicted[track] = results[: len(windows[track])].mean(0).argmax()
    return predicted


def _programs(network: Network, optimizer: optax.GradientTransformation) -> tuple[Callable, Callable]:
    """Returns the compiled training step and the compiled logarithms of probabilities."""

    def loss(parameters: Any, codes: jax.Array, classes: jax.Array, key: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(key, 1 - MASKED_SHARE, codes.shape)
        logits = network.apply(parameters, {}, codes, kept)
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters: Any, moments: Any, codes: jax.Array, classes: jax.Array, key: jax.Array) -> tuple[Any, Any]:
        updates, moments = optimizer.update(jax.grad(loss)(parameters, codes, classes, key), moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    @jax.jit
    def log_probabilities(parameters: Any, codes: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(network.apply(parameters, {}, codes, jnp.ones(codes.shape, bool)))

    return step, log_probabilities


def _batches(
    windows: Sequence[np.ndarray], classes: np.ndarray, tracks: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields windows `[B, L, F]` of random tracks and their classes `[B]`; all classes are equally frequent."""
    by_class = [tracks[classes[tracks] == number] for number in np.unique(classes[tracks])]
    while True:
        drawn = [rng.choice(by_class[rng.integers(len(by_class))]) for _ in range(BATCH)]
        codes = np.stack([windows[track][rng.integers(len(windows[track]))] for track in drawn])
        yield codes, classes[np.array(drawn)]


def _windows(codes: np.ndarray, length: int) -> np.ndarray:
    """Returns codes `[T, F]` as windows `[any, length, F]`; the last overlaps, and a shorter grid is repeated."""
    if len(codes) < length:
        codes = np.resize(codes, (length, codes.shape[1]))
    starts = [*range(0, len(codes) - length, length), len(codes) - length]
    return np.stack([codes[start : start + length] for start in starts])


def _padded(windows: np.ndarray) -> Iterator[np.ndarray]:
    """Yields windows in batches of one size, the last filled with zeros."""
    for start in range(0, len(windows), BATCH):
        part = windows[start : start + BATCH]
        yield np.pad(part, ((0, BATCH - len(part)), (0, 0), (0, 0)))
