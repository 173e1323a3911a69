"""Weights as matrices, what convolutions read at each place, and fits, against direct computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted import OwnVAE, randomise
from vaeprune.posterior import Posterior
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.regression import (
    Places,
    as_matrix,
    as_weight,
    balanced,
    columns_of,
    features,
    gram,
    least_squares,
    quartimax,
    ridge,
    weighted_least_squares,
    with_ones,
)
from vaeprune.surgery.sites import Site
from vaeprune.surgery.watching import Run, Watcher


class OneLayer(OwnVAE):
    """decode is one call on a weight."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], call: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.layer, self._shape, self._call = layer, shape, call
        randomise(self, 0)
        self.double().eval()

    @property
    def latent_size(self) -> int:
        return self._shape[0]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self._shape

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        return Posterior(x, x)

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self._call(self.layer, z) if self._call else self.layer(z)


class Catch(Watcher):
    """Keeps the one call, its operand and its result."""

    def compute(self, call: int, site: Site, run: Run) -> Tensor:
        self.site, self.run = site, run
        self.result = run()
        return self.result


def caught(vae: OneLayer, rows: int = 4) -> tuple[Catch, Subject]:
    shape = vae.latent_shape
    z = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    subject = Subject(vae, (torch.zeros(1, *shape),))
    watch = Catch()
    subject.run(lambda copy: copy.decode_parameters(z), watch)
    return watch, subject


def positional(layer: nn.Module, z: Tensor) -> Tensor:
    return F.conv2d(z, layer.weight, layer.bias, (2, 1), (1, 0), (1, 2))


def by_name(layer: nn.Module, z: Tensor) -> Tensor:
    return F.conv_transpose2d(weight=layer.weight, input=z, bias=layer.bias, output_padding=(1, 0), stride=(2, 1))


CASES: dict[str, tuple[nn.Module, tuple[int, ...], Any]] = {
    "linear": (nn.Linear(5, 3), (5,), None),
    "linear on maps": (nn.Linear(5, 3), (4, 5), None),
    "no bias": (nn.Linear(5, 3, bias=False), (5,), None),
    "conv1d": (nn.Conv1d(3, 4, 3), (3, 9), None),
    "conv1d strided, padded, dilated": (nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (3, 9), None),
    "conv1d same": (nn.Conv1d(3, 4, 5, padding="same"), (3, 9), None),
    "conv2d": (nn.Conv2d(2, 3, 3), (2, 5, 6), None),
    "conv2d pointwise": (nn.Conv2d(2, 3, 1), (2, 5, 6), None),
    "conv2d strided, padded": (nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 6, 5), None),
    "conv2d dilated": (nn.Conv2d(2, 3, 3, dilation=2, padding=1), (2, 7, 6), None),
    "conv2d same": (nn.Conv2d(2, 3, (3, 4), padding="same", dilation=(1, 2)), (2, 7, 9), None),
    "conv2d valid": (nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 5), None),
    "conv2d called with everything in place": (nn.Conv2d(2, 3, 3), (2, 7, 7), positional),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 3, 4, 3), None),
    "transposed 1d": (nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 6), None),
    "transposed 2d": (nn.ConvTranspose2d(2, 3, 3), (2, 4, 5), None),
    "transposed 2d strided": (nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1), (2, 4, 3), None),
    "transposed 2d, larger stride than kernel": (nn.ConvTranspose2d(2, 3, 2, stride=3), (2, 3, 3), None),
    "transposed 2d dilated": (nn.ConvTranspose2d(2, 3, 3, stride=2, dilation=2, padding=2), (2, 4, 4), None),
    "transposed 2d with output padding": (
        nn.ConvTranspose2d(2, 3, 3, stride=(2, 3), padding=1, output_padding=(1, 2)), (2, 4, 3), None,
    ),
    "transposed 2d called by name": (nn.ConvTranspose2d(2, 3, 3), (2, 4, 3), by_name),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_features_times_the_matrix_are_the_layers_own_result(case: tuple[nn.Module, tuple[int, ...], Any]) -> None:
    watch, subject = caught(OneLayer(*case))
    site, run, result = watch.site, watch.run, watch.result
    matrix = as_matrix(subject.weight(site.key), site).flatten(1)
    bias = subject.weight(site.bias) if site.bias else 0.0
    everywhere = result.numel() // (len(result) * result.shape[site.result_dim])
    for places in (Places(None), Places.of(len(result), everywhere, 2 * len(result), 0)):
        x = features(run, run.operand, places)
        expected = places.take(result, site.result_dim)
        assert x.shape == (len(expected), matrix.shape[1])
        assert torch.allclose(x @ matrix.T + bias, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_as_weight_undoes_as_matrix(case: tuple[nn.Module, tuple[int, ...], Any]) -> None:
    watch, subject = caught(OneLayer(*case))
    weight = subject.weight(watch.site.key)
    assert torch.equal(as_weight(as_matrix(weight, watch.site), watch.site, weight), weight)


def test_columns_are_those_that_a_channel_has_under_each_tap() -> None:
    assert columns_of([2, 0], 3) == [6, 7, 8, 0, 1, 2]
    watch, subject = caught(OneLayer(nn.Conv1d(3, 2, 3), (3, 7)))
    matrix = as_matrix(subject.weight("layer.weight"), watch.site)
    assert torch.equal(matrix.flatten(1)[:, columns_of([1], 3)], matrix[:, 1])


# ---- places


def test_few_places_are_all_taken_once() -> None:
    assert Places.of(10, 4, 40, 0).chosen is None


def test_many_places_are_a_choice_that_a_chunk_of_the_rows_shares() -> None:
    places = Places.of(6, 50, 18, 3)
    assert places.chosen.shape == (6, 3)
    assert int(places.chosen.max()) < 50
    value = torch.arange(6 * 2 * 50).view(6, 2, 50).double()
    whole = places.take(value, 1)
    parts = [places.take(value[start : start + 2], 1, start) for start in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole[4], value[1, :, places.chosen[1, 1]])


def test_more_rows_than_places_wanted_give_one_place_each() -> None:
    assert Places.of(100, 50, 18, 3).chosen.shape == (100, 1)


# ---- fits


def problem(rows: int = 200, inputs: int = 5, outputs: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    y = y + torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    return x, y, torch.rand(rows, outputs, generator=generator, dtype=torch.float64) ** 4


def test_least_squares_is_the_closed_form() -> None:
    x, y, _ = problem()
    assert torch.allclose(least_squares(x, y), torch.linalg.lstsq(x, y).solution.T, atol=1e-5)


def test_weighted_least_squares_is_the_closed_form_of_every_output() -> None:
    x, y, weights = problem()
    found = weighted_least_squares(x, y, weights, iterations=30)
    count = 0.95 * weights / weights.mean(0) + 0.05  # the floor that every row has
    for output in range(y.shape[1]):
        weighted = count[:, output, None] * x
        curvature = weighted.T @ x / len(x) + ridge(x) * torch.eye(x.shape[1])
        expected = torch.linalg.solve(curvature, weighted.T @ y[:, output] / len(x))
        assert torch.allclose(found[output], expected, atol=1e-9)


def test_each_iteration_brings_the_weighted_error_down() -> None:
    x, y, weights = problem(60, 12)
    count = 0.95 * weights / weights.mean(0) + 0.05
    errors = [
        float((count * (y - x @ weighted_least_squares(x, y, weights, n).T).square()).sum()) for n in (0, 1, 2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


def test_equal_weights_are_no_weights() -> None:
    x, y, _ = problem()
    found = weighted_least_squares(x, y, torch.full_like(y, 3.0), 4)
    assert torch.allclose(found, least_squares(x, y), atol=1e-5)


def test_outputs_that_do_not_matter_are_fitted_all_the_same() -> None:
    x, y, weights = problem()
    weights[:, 1] = 0
    found = weighted_least_squares(x, y, weights, 20)
    assert found.isfinite().all()
    assert torch.allclose(found[1], least_squares(x, y)[1], atol=1e-4)


def test_inputs_that_are_always_zero_or_the_same_do_not_break_a_fit() -> None:
    x, y, weights = problem()
    x[:, 0] = 0
    x[:, 2] = x[:, 1]
    for dtype in (torch.float32, torch.float64):
        found = weighted_least_squares(x.to(dtype), y.to(dtype), weights.to(dtype), 6)
        assert found.isfinite().all()
        best = torch.linalg.lstsq(x, y, driver="gelsd").solution
        mistake = (y - x @ best).square().mean()
        assert (y - x @ found.double().T).square().mean() < 1.6 * mistake


def test_many_iterations_in_float32_on_features_that_nearly_repeat_stay_finite() -> None:
    """Long after all is fitted what is left is rounding, which must not be followed."""
    generator = torch.Generator().manual_seed(1)
    base = torch.rand(2000, 6, generator=generator)
    x = with_ones(torch.cat([base, base + 1e-4 * torch.rand(2000, 6, generator=generator), torch.zeros(2000, 4)], 1))
    y = x @ torch.randn(17, 8, generator=generator) + 1e-3 * torch.rand(2000, 8, generator=generator)
    weights = torch.rand(2000, 8, generator=generator) ** 6 * torch.tensor([1.0, 1e-20, 1e-38, 0, 1e10, 1, 1, 1])
    for iterations in (1, 6, 60):
        found = weighted_least_squares(x, y, weights, iterations)
        assert found.isfinite().all()
        assert (y - x @ found.T).square().mean() < 1e-4


def test_weights_stay_small_where_features_are_the_same() -> None:
    """Eight units that all follow one: the fit shares the weight out instead of playing them against each other."""
    generator = torch.Generator().manual_seed(1)
    unit = torch.rand(500, 1, generator=generator)
    x = with_ones(unit @ torch.rand(1, 8, generator=generator) + torch.rand(8, generator=generator))
    y = 3 * unit - 1 + 0.1 * torch.randn(500, 4, generator=generator)
    found = weighted_least_squares(x, y, torch.rand(500, 4, generator=generator) ** 4, 6)
    assert float(found.abs().max()) < 20
    assert (y - x @ found.T).square().mean() < 0.011


def test_ones_are_a_feature_for_the_bias() -> None:
    x, y, _ = problem()
    found = least_squares(with_ones(x), y + 5)
    assert torch.allclose((y + 5).mean(0), with_ones(x).mean(0) @ found.T, atol=1e-4)


def test_gram_can_be_inverted_even_where_all_is_zero() -> None:
    assert torch.linalg.inv(gram(torch.zeros(7, 3))).isfinite().all()


def test_balanced_factors_have_the_same_product_and_are_no_larger_than_it_needs() -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((7, 3), (3, 5)))
    mixing = torch.tensor([[1, 1e2, 0], [0, 1, 1e2], [0, 0, 1]], dtype=torch.float64)
    left, right = balanced(up @ mixing, torch.linalg.solve(mixing, down))
    torch.testing.assert_close(left @ right, up @ down, rtol=0, atol=1e-9)
    roots = torch.linalg.svdvals(up @ down)[:3].sqrt()
    for factor in (left, right):
        torch.testing.assert_close(torch.linalg.svdvals(factor), roots, rtol=1e-6, atol=1e-9)


def test_turned_factors_have_the_same_product_and_find_outputs_that_share_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    up = torch.zeros(12, 3, dtype=torch.float64)
    for code in range(3):  # each output reads one combination
        up[4 * code : 4 * code + 4, code] = torch.randn(4, generator=generator, dtype=torch.float64)
    down = torch.linalg.qr(torch.randn(5, 3, generator=generator, dtype=torch.float64)).Q.T
    mixing = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    left, right = quartimax(up @ mixing, mixing.T @ down)
    torch.testing.assert_close(left @ right, up @ down, rtol=0, atol=1e-12)
    assert ((left.abs() > 1e-3).sum(1) == 1).all()
    torch.testing.assert_close(right @ right.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_an_output_of_small_values_rounds_less_where_it_reads_no_large_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.zeros(shape, dtype=torch.float64) for shape in ((8, 2), (2, 60)))
    for code in range(2):  # as large as each other, but the second reads values a thousand times smaller
        up[4 * code : 4 * code + 4, code] = 0.5
        down[code, 30 * code : 30 * code + 30] = torch.randn(30, generator=generator, dtype=torch.float64) / 30**0.5
    x = torch.randn(500, 60, generator=generator, dtype=torch.float64)
    x[:, 30:] /= 1000
    mixing = torch.linalg.qr(torch.randn(2, 2, generator=generator, dtype=torch.float64)).Q

    def error(wide: Tensor, narrow: Tensor) -> float:
        found = (x.float() @ narrow.float().T) @ wide.float().T
        return (found - x @ (wide.float().double() @ narrow.float().double()).T)[:, 4:].abs().max().item()

    mixed = up @ mixing, mixing.T @ down
    assert error(*quartimax(*mixed)) < error(*mixed) / 10


def test_balanced_factors_lose_a_rank_that_the_rows_cannot_have() -> None:
    up, down = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    left, right = balanced(up, down)
    assert left.shape == (1, 1)
    assert right.shape == (1, 2)
    torch.testing.assert_close(left @ right, up)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 1e8])
def test_the_gram_matrix_of_dependent_features_can_be_inverted(scale: float) -> None:
    x = scale * torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = gram(torch.cat([x, x.sum(1, keepdim=True), x[:, :1]], 1))
    assert torch.linalg.eigvalsh(found).min() > 0
    assert torch.linalg.inv(found).isfinite().all()
