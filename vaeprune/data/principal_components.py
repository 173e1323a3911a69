"""How many directions rows vary in: a start for the number of latents."""

from __future__ import annotations

import math

import torch

from vaeprune.data.rows import MemoryRows

_MOST_ROWS = 2_048
_MOST_BYTES = 1 << 28


def principal_components(rows: MemoryRows, share: float = 0.99) -> int:
    """How many principal components hold `share` of the variance of `rows`; 0 if all rows are equal.

    At most 2,048 rows, evenly spaced, are looked at (fewer where rows are so large that 256 MB would not hold them), so
    the answer is below that number. Eigenvalues of the smaller of the covariance and the Gram matrix, in float64.
    """
    most = max(2, min(_MOST_ROWS, _MOST_BYTES // (8 * math.prod(rows.row_shape))))
    chosen = torch.linspace(0, rows.count - 1, min(rows.count, most), dtype=torch.float64).round().long()
    x = rows.take(chosen, torch.float64)[0].flatten(1)
    size = x.abs().max()
    x = x - x.mean(0)
    if x.abs().max() <= 1e-12 * size:  # equal but for rounding
        return 0
    x = x / x.abs().max()  # values may be so large or small that squares would overflow or vanish
    products = x.T @ x if x.shape[1] < len(x) else x @ x.T
    variances = torch.linalg.eigvalsh(products).clamp(min=0).flip(0)
    return int((variances.cumsum(0) < share * variances.sum()).sum()) + 1
