"""Use, entropy and bitrate of the codes of a tokenizer. NumPy and SciPy only.

Letters: N columns of all segments together, F rows of the grid, K codes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy

# Columns of the tables about all rows of a codec, and their units.
COLUMNS = {
    "codes_use": "",
    "codes_entropy": "bit",
    "codes_perplexity": "",
    "codes_nominal_bits_per_second": "bit/s",
    "codes_entropy_bits_per_second": "bit/s",
    "codes_adaptive_bits_per_second": "bit/s",
}


def count_codes(grids: Iterable[np.ndarray], codebook_size: int) -> np.ndarray:
    """Counts each code in each row of grids `[T, F]`, int64 `[F, K]`."""
    counts = [np.stack([np.bincount(row, minlength=codebook_size) for row in codes.T]) for codes in grids]
    return np.sum(counts, axis=0)


def entropy_bits(counts: np.ndarray) -> np.ndarray:
    """Returns the entropy of each row of counts `[..., K]` in bits, by the plug-in estimate; 0 for no counts."""
    total = counts.sum(-1, keepdims=True)
    shares = counts / np.maximum(total, 1)
    return scipy.special.entr(shares).sum(-1) / np.log(2)


def adaptive_bits(counts: np.ndarray) -> np.ndarray:
    """Returns the code length in bits of an adaptive arithmetic coder, for symbols with these counts `[..., K]`.

    It is the Krichevsky-Trofimov code length (1981). The coder starts without a histogram and updates it after each
    symbol: a code has the probability (n + 1/2) / (N + K / 2) after n of N. So the sum depends on the counts alone, not
    on the order of the symbols.
    """
    K = counts.shape[-1]
    gammaln = scipy.special.gammaln
    symbols = (gammaln(counts + 0.5) - gammaln(0.5)).sum(-1)
    return (gammaln(counts.sum(-1) + K / 2) - gammaln(K / 2) - symbols) / np.log(2)


def statistics(counts: np.ndarray, columns_per_second: float, row_kind: str) -> dict[str, Any]:
    """Returns use, entropy and bitrates of the codes behind `counts` `[F, K]`, for each row and all rows together.

    Args:
      counts: see `count_codes`.
      columns_per_second: columns of the grid in a second.
      row_kind: bands share one codebook, so "together" is one histogram of all rows; residual levels have one each, so
        it is the mean of the rows.

    Returns:
      "rows" (a list) and "together" hold `use`, the share of the codes in use, `entropy` in bits, `perplexity`, which
      is 2^entropy, and `efficiency`, the entropy by log2 K (DAC's bitrate efficiency is its mean over levels).
      "bits_per_second" holds three bitrates. `nominal` takes ceil(log2 K) bits for every code, `entropy` is the lower
      bound for a coder with the histogram of each row, and `adaptive` is that of a coder that learns the histograms.
    """
    F, K = counts.shape
    columns = int(counts[0].sum())
    rows = [_of_histogram(row) for row in counts]
    bits_per_column = {
        "nominal": F * (K - 1).bit_length(),
        "entropy": entropy_bits(counts).sum(),
        "adaptive": adaptive_bits(counts).sum() / max(columns, 1),
    }
    return {
        "columns": columns,
        "rows": rows,
        "together": _mean(rows) if row_kind == "residual" else _of_histogram(counts.sum(0)),
        "bits_per_second": {kind: float(bits) * columns_per_second for kind, bits in bits_per_column.items()},
    }


def columns(statistics: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of `statistics` about all rows, by the names of COLUMNS."""
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
