"""t-SNE of the latents of a codebook (MelTok, arXiv 2510.01903, figure 3)."""

from typing import Any

import numpy as np

MAX_POINTS = 1000  # half a minute of one core; our choice
PERPLEXITY = 30.0  # the usual value


def project(latents: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Projects latents `[n, F, D]` to points `[N, 2]`, N at most MAX_POINTS, and returns their rows `[N]` as well."""
    from sklearn.manifold import TSNE  # slow to import

    n, F, D = latents.shape
    points, rows = latents.reshape(n * F, D), np.tile(np.arange(F), n)
    if len(points) > MAX_POINTS:
        chosen = np.random.default_rng(seed).choice(len(points), MAX_POINTS, replace=False)
        points, rows = points[chosen], rows[chosen]
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    init = "pca" if D > 1 else "random"
    # Without an annotation a type checker analyses scikit-learn for eight seconds.
    projection: Any = TSNE(perplexity=perplexity, init=init, random_state=seed)
    return projection.fit_transform(points), rows
