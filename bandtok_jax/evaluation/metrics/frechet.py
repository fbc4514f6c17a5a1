"""The Fréchet distance between two sets of embeddings, and an embedding that needs no weights. NumPy only."""

from collections.abc import Callable

import numpy as np

from bandtok_jax.evaluation.metrics import spectra

MEL_BANDS, MEL_WINDOW, MEL_FLOOR = 32, 2048, 1e-5
MEL_SECONDS = 1.0
MEL_DIMENSIONS = 2 * MEL_BANDS
MEL_MEANING = (
    "Frechet distance between the mel statistics of reference and decoded audio: every second of audio is one vector "
    "of 64 numbers, the mean and the standard deviation over its frames of 32 natural-log Slaney mel bands "
    "(magnitudes, window 2048, hop 512, floor 1e-5). It needs no weights, and must not be compared with FAD by VGGish "
    "or CLAP"
)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the squared Fréchet distance of the Gaussians fitted to two sets of embeddings, `[N, E]` each.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), as in Heusel et al. 2017; for audio, Kilgour et al. 2019. The root is
    that of the symmetric C1^(1/2) C2 C1^(1/2), which has the same trace, so that singular covariances (N < E) give no
    complex numbers. Covariances divide by N - 1.

    Raises:
      ValueError: fewer than two embeddings, embeddings of two sizes, or NaN.
    """
    first, second = (np.asarray(x, np.float64) for x in (first, second))
    for embeddings in (first, second):
        if embeddings.ndim != 2 or len(embeddings) < 2 or not np.isfinite(embeddings).all():
            raise ValueError(
                f"embeddings of the shape {embeddings.shape} with {np.count_nonzero(~np.isfinite(embeddings))} "
                "numbers that are not finite: give [N, E] with N of 2 or more"
            )
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"embeddings of {first.shape[1]} and of {second.shape[1]} numbers: make both with the same network"
        )
    means, covariances = zip(*((x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))) for x in (first, second)))
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ covariances[1] @ root
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    distance = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross
    return float(max(distance, 0.0))


def mel_embedding(audio: np.ndarray, sample_rate_hz: int, magnitude: Callable = spectra.magnitude) -> np.ndarray:
    """Returns a vector for each whole second of mono audio `[S]`, float32 `[N, 64]`; shorter audio is one second."""
    mel = spectra.mel(magnitude(audio, MEL_WINDOW), sample_rate_hz, MEL_BANDS)
    log_mel = np.log(np.maximum(mel, MEL_FLOOR))
    frames = round(MEL_SECONDS * sample_rate_hz / (MEL_WINDOW // 4))
    whole = log_mel[: max(1, len(log_mel) // frames) * frames]
    seconds = np.array_split(whole, max(1, len(whole) // frames))
    return np.stack([np.concatenate([part.mean(0), part.std(0)]) for part in seconds]).astype(np.float32)
