"""How many directions rows vary in, held against numpy's singular values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vaeprune.data import MemoryRows
from vaeprune.data.principal_components import principal_components


def of(x: Tensor) -> MemoryRows:
    return MemoryRows("x", x)


def by_numpy(x: Tensor, share: float) -> int:
    values = x.double().flatten(1).numpy()
    variances = np.linalg.svd(values - values.mean(0), compute_uv=False) ** 2
    return int(np.searchsorted(np.cumsum(variances) / variances.sum(), share)) + 1


@pytest.mark.parametrize("shape", [(50, 3, 4), (12, 40)], ids=["more rows", "more values"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_agrees_with_singular_values(shape, share):
    x = torch.from_numpy(np.random.default_rng(1).normal(size=shape)) * torch.linspace(0.1, 3, shape[-1])
    assert principal_components(of(x), share) == by_numpy(x, share)


def test_rows_of_rank_two_have_two():
    left, right = np.random.default_rng(0).normal(size=(80, 2)), np.random.default_rng(1).normal(size=(2, 30))
    assert principal_components(of(torch.from_numpy(left @ right + 5))) == 2


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_scale_does_not_matter(scale):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 6)))
    assert principal_components(of(x * scale)) == principal_components(of(x))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_equal_rows_have_none(value):
    assert principal_components(of(torch.full((50, 7), value, dtype=torch.float64))) == 0


def test_one_row_has_none():
    assert principal_components(of(torch.rand(1, 7))) == 0


def test_one_row_that_differs_has_one():
    x = torch.zeros(50, 7, dtype=torch.uint8)
    x[49, 3] = 255
    assert principal_components(of(x)) == 1


def test_rows_beyond_those_looked_at_do_not_matter_much():
    left, right = np.random.default_rng(0).normal(size=(5000, 3)), np.random.default_rng(1).normal(size=(3, 20))
    assert principal_components(of(torch.from_numpy(left @ right))) == 3
