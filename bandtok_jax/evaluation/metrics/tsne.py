"""What the codebook is given, as a picture: t-SNE of the latents (MelTok, arXiv 2510.01903, figure 3)."""

import numpy as np

MOST_POINTS = 3000  # one for each row and column drawn; t-SNE takes seconds then, our choice
NEIGHBOURS = 30.0  # the "perplexity" of t-SNE, its usual value


def plane(latents: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Latents `[n, F, D]` to places in a plane `[N, 2]`, and their rows `[N]`; N at most about MOST_POINTS."""
    from sklearn.manifold import TSNE  # slow to import

    n, F, D = latents.shape
    points, rows = latents.reshape(n * F, D), np.tile(np.arange(F), n)
    if len(points) > MOST_POINTS:
        chosen = np.random.default_rng(seed).choice(len(points), MOST_POINTS, replace=False)
        points, rows = points[chosen], rows[chosen]
    neighbours = min(NEIGHBOURS, (len(points) - 1) / 3)
    start = "pca" if D > 1 else "random"
    return TSNE(perplexity=neighbours, init=start, random_state=seed).fit_transform(points), rows
