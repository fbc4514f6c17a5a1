"""What the codes of a tokenizer say about it: use, entropy and bitrate of its codebook. NumPy and SciPy only.

Letters: N columns of all pieces together, F rows of the grid, K codes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy

# Numbers about all rows of a codec as tables have them, and their units.
COLUMNS = {
    "codes_use": "",
    "codes_entropy": "bit",
    "codes_perplexity": "",
    "codes_nominal_bits_per_second": "bit/s",
    "codes_entropy_bits_per_second": "bit/s",
    "codes_adaptive_bits_per_second": "bit/s",
}


def count_codes(grids: Iterable[np.ndarray], codebook_size: int) -> np.ndarray:
    """How often each code comes in each row of grids `[T, F]`, int64 `[F, K]`."""
    return sum(np.stack([np.bincount(row, minlength=codebook_size) for row in codes.T]) for codes in grids)


def entropy_bits(counts: np.ndarray) -> np.ndarray:
    """Entropy of each row of counts `[..., K]` in bits, by the plug-in estimate; 0 where nothing was counted."""
    total = counts.sum(-1, keepdims=True)
    shares = counts / np.maximum(total, 1)
    return scipy.special.entr(shares).sum(-1) / np.log(2)


def adaptive_bits(counts: np.ndarray) -> np.ndarray:
    """Bits that an adaptive arithmetic coder needs for symbols with these counts `[..., K]`.

    The coder knows nothing beforehand and learns as it goes: each code has the probability (n + 1/2) / (N + K / 2)
    after n of N (Krichevsky and Trofimov 1981), so the sum depends on the counts alone, not on their order.
    """
    K = counts.shape[-1]
    gamma = scipy.special.gammaln
    inner = (gamma(counts + 0.5) - gamma(0.5)).sum(-1)
    return (gamma(counts.sum(-1) + K / 2) - gamma(K / 2) - inner) / np.log(2)


def statistics(counts: np.ndarray, columns_per_second: float, row_kind: str) -> dict[str, Any]:
    """Numbers about the codes behind `counts` `[F, K]`, for each row and for all rows together.

    Args:
      row_kind: bands share one codebook, so "together" is of all rows in one histogram; residual levels have one each,
        so it is the mean of the rows.

    Returns:
      For "rows" (a list) and "together": `use`, the share of the codes that came at all; `entropy` in bits;
      `perplexity` 2^entropy; `efficiency`, the entropy by log2 K (DAC's bitrate efficiency is its mean over levels).
      In "bits_per_second": `nominal`, ceil(log2 K) bits for every code; `entropy`, the lower bound for a coder that
      knows each row's histogram beforehand; `adaptive`, of a coder that learns each row's histogram as it goes.
    """
    F, K = counts.shape
    columns = int(counts[0].sum())
    rows = [_of_histogram(row) for row in counts]
    rate = lambda bits: float(bits) * columns_per_second
    return {
        "columns": columns,
        "rows": rows,
        "together": _mean(rows) if row_kind == "residual" else _of_histogram(counts.sum(0)),
        "bits_per_second": {
            "nominal": rate(F * (K - 1).bit_length()),
            "entropy": rate(entropy_bits(counts).sum()),
            "adaptive": rate(adaptive_bits(counts).sum() / max(columns, 1)),
        },
    }


def columns(statistics: dict[str, Any]) -> dict[str, float]:
    """What `statistics` says of all rows, by the names of COLUMNS."""
    together, rates = statistics["together"], statistics["bits_per_second"]
    values = [together[name] for name in ("use", "entropy", "perplexity")]
    return dict(zip(COLUMNS, [*values, *(rates[kind] for kind in ("nominal", "entropy", "adaptive"))], strict=True))


def _of_histogram(counts: np.ndarray) -> dict[str, float]:
    entropy = float(entropy_bits(counts))
    return {
        "use": float((counts > 0).mean()),
        "entropy": entropy,
        "perplexity": 2**entropy,
        "efficiency": entropy / np.log2(len(counts)),
    }


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
