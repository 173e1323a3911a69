"""Every weight as a linear map from what it reads at one place to what it writes there, and fits of such maps.

A linear layer reads a row of C channels. A convolution of T taps reads, at each place of its result, C·T numbers: each
channel under each tap (zeros where it pads). So both are a matrix (O, C·T), and both are fitted by least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeprune.surgery.sites import Site
from vaeprune.surgery.watching import Run

MOST_FEATURES = 1600  # a Gram matrix of more is too large: 1600² float64 numbers are 20 MB, its inverse takes a second
_SINGULAR = 1e-9  # of the largest eigenvalue
_RIDGE = 1e-6  # of the mean square of the features
_TURNS, _TURNED = 100, 1e-6  # at most, and until a turn gains no more than this share
_FLOOR = 0.05  # share of the mean weight that every row has, since curvature is known only near the original


def as_matrix(weight: Tensor, site: Site) -> Tensor:
    """(O, C, T) view of a weight in its own layout; T = 1 for linear layers."""
    moved = weight.movedim((site.output_axis, site.input_axis), (0, 1))
    return moved.flatten(2) if moved.dim() > 2 else moved[:, :, None]


def as_weight(matrix: Tensor, site: Site, like: Tensor) -> Tensor:
    """The inverse of `as_matrix`; `like` has the kernel's shape."""
    kernel = like.movedim((site.output_axis, site.input_axis), (0, 1)).shape[2:]
    return matrix.reshape(*matrix.shape[:2], *kernel).movedim((0, 1), (site.output_axis, site.input_axis))


@dataclass(frozen=True)
class Places:
    """Which places of a result are looked at, for each row of a run: (N, k) indices, or None for all."""

    chosen: Tensor | None

    @classmethod
    def of(cls, rows: int, places: int, most: int, seed: int) -> Places:
        """A random choice such that there are at most about `most` in all."""
        each = max(1, most // max(rows, 1))
        if each >= places:
            return cls(None)
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randint(places, (rows, each), generator=generator))

    def take(self, value: Tensor, dim: int, start: int = 0) -> Tensor:
        """value (n, ...) with channels at `dim`, its rows being those from `start` on → (n·k, channels)."""
        flat = value.movedim(dim, -1).flatten(1, -2) if value.dim() > 2 else value[:, None]
        if self.chosen is None:
            return flat.flatten(0, 1)
        at = self.chosen[start : start + len(flat)].to(flat.device)
        return torch.gather(flat, 1, at[:, :, None].expand(-1, -1, flat.shape[-1])).flatten(0, 1)


def features(run: Run, operand: Tensor, places: Places) -> Tensor:
    """What a weight reads at the chosen places of its result: (rows·k, C·T)."""
    site = run.site
    if not site.spatial:
        return places.take(operand, site.operand_dim)
    seen = run.taps(operand).flatten(1).T.to(operand.device)  # (places, T)
    flat = torch.nn.functional.pad(operand.flatten(2), (1, 0))  # place 0 is what padding reads
    rows, channels = flat.shape[:2]
    chosen = places.chosen
    at = seen.flatten().expand(rows, -1) if chosen is None else seen[chosen.to(operand.device)].flatten(1)
    picked = torch.gather(flat, 2, at[:, None, :].expand(-1, channels, -1))
    return picked.view(rows, channels, -1, seen.shape[1]).transpose(1, 2).reshape(-1, channels * seen.shape[1])


def gram(x: Tensor) -> Tensor:
    """XᵀX / n with a little on the diagonal so that it can be inverted, float64."""
    x = x.double()
    found = x.T @ x / len(x)
    return found + ridge(x) * torch.eye(len(found), dtype=found.dtype, device=found.device)


def ridge(x: Tensor) -> float:
    """What keeps weights of features x (n, M) from growing where these are nearly dependent."""
    return _RIDGE * float(x.double().square().mean()) + 1e-30


def with_ones(x: Tensor) -> Tensor:
    """A further feature that is always 1, for the bias."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """W (O, M) with x Wᵀ ≈ y, for x (n, M) and y (n, O)."""
    solved: Tensor = torch.linalg.solve(gram(x), x.double().T @ y.double() / len(x))
    return solved.T.to(x.dtype)


def weighted_least_squares(x: Tensor, y: Tensor, weights: Tensor, iterations: int) -> Tensor:
    """As `least_squares`, where the square at row n of output o counts weights[n, o] (n, O).

    Conjugate gradients from the unweighted solution, all outputs at once, preconditioned by its Gram matrix. Only
    products with x are in the type of x: in float32 the inverse of a nearly singular Gram matrix is not positive. The
    ridge counts in every step, or else rounding would grow without end along what features have in common.
    """
    count = weights / weights.mean(0).clamp_min(torch.finfo(weights.dtype).tiny)
    count = (1 - _FLOOR) * count + _FLOOR
    inverse, small = torch.linalg.inv(gram(x)), ridge(x)

    def pulled(errors: Tensor) -> Tensor:
        """(O, M) from errors (n, O)."""
        return ((count * errors).T @ x).double() / len(x)

    found: Tensor = (x.double().T @ y.double() / len(x)).T @ inverse
    residual = pulled(y - x @ found.T.to(x.dtype)) - small * found
    direction = step = residual @ inverse
    product = (residual * step).sum(1)
    done = torch.finfo(x.dtype).eps ** 2 * product  # what is left by then is rounding
    for _ in range(iterations):
        curved = pulled(x @ direction.T.to(x.dtype)) + small * direction
        curvature = (direction * curved).sum(1)
        length = torch.where((product > done) & (curvature > 0), product / curvature, 0.0)
        found = found + length[:, None] * direction
        residual = residual - length[:, None] * curved
        step = residual @ inverse
        before, product = product, (residual * step).sum(1)
        direction = step + torch.where(before > done, product / before, 0.0)[:, None] * direction
    return found.to(x.dtype)


def columns_of(channels: Sequence[int], taps: int) -> list[int]:
    """The features that belong to input channels."""
    return [channel * taps + tap for channel in channels for tap in range(taps)]


def best_rows(weight: Tensor, x: Tensor, fisher: Tensor, rank: int, centred: bool) -> Tensor:
    """The `rank` combinations (rank, M) of features x (n, M) through which weight (O, M) loses least.

    Least of ½ tr(F (W − UV) S (W − UV)ᵀ), by the singular values of F^½ W S^½; each is of unit size on the data.
    """
    x = x.double()
    moments = gram(x - x.mean(0) if centred else x).cpu()
    return best_combinations(weight.double().cpu(), moments, fisher)[0][:rank].to(weight)


def best_combinations(weight: Tensor, moments: Tensor, fisher: Tensor) -> tuple[Tensor, Tensor]:
    """All combinations (r, M) of what weight (O, M) reads, the best first, and the singular values of F^½ W S^½.

    They are taken as Σ⁻¹PᵀF^½W rather than as QᵀS^-½, which is the same on the data: so no direction that the data do
    not take gets a large weight.
    """
    curved = root(fisher) @ weight
    left, values, _ = torch.linalg.svd(curved @ root(moments), full_matrices=False)
    size = values.clamp_min(_SINGULAR * float(values.max().clamp_min(1e-30)))
    return (left.T @ curved) / size[:, None], values


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product of up (O, r) and down (r, M), shared out so that neither is larger than it has to be.

    With W = PSQᵀ they become PS^½ and S^½Qᵀ. Rounding in a product is as large as its factors are; a fit leaves some
    whose large entries only cancel, and with those float32 loses another digit.
    """
    outer, inner = torch.linalg.qr(up), torch.linalg.qr(down.T)
    left, values, right = torch.linalg.svd(outer.R @ inner.R.T, full_matrices=False)
    shared = values.sqrt()
    return (outer.Q @ left) * shared, shared[:, None] * (right @ inner.Q.T)


def quartimax(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product of up (O, r) and down (r, M), turned so that each output reads few of the r combinations.

    A combination rounds as the largest values that enter it do, and all that read it share that error; an output of
    small values wants none of another's large ones. Quartimax (Neuhaus and Wrigley, "The quartimax method", 1954): the
    sum of fourth powers of `up` is largest. It is convex, so that each step towards its gradient gains.
    """
    rotation, reached = torch.eye(up.shape[1], dtype=up.dtype, device=up.device), 0.0
    for _ in range(_TURNS):
        turned = up @ rotation
        before, reached = reached, float(turned.pow(4).sum())
        if reached <= before * (1 + _TURNED):
            break
        left, _, right = torch.linalg.svd(up.T @ turned.pow(3))
        rotation = left @ right
    return up @ rotation, rotation.T @ down


def rank_costs(weight: Tensor, covariance: Tensor, fisher: Tensor) -> Tensor:
    """What keeping only r combinations costs, for r = 0, 1, ... (nats per row), float64."""
    values = torch.linalg.svdvals(root(fisher) @ weight.double() @ root(covariance))
    return torch.cat([0.5 * values.square().flip(0).cumsum(0).flip(0), values.new_zeros(1)])


def root(matrix: Tensor) -> Tensor:
    """Square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(_SINGULAR * float(values.max().clamp_min(1e-30)))
    found: Tensor = (vectors * values.sqrt()) @ vectors.T
    return found
