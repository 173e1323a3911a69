"""Fitted weights against numpy's least squares, on decoders of a few numbers in float64.

The likelihood is Gaussian with s² = 1, so that every output of the last layer counts the same in every row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hidden_models import ABOVE, LATENTS, HiddenVAE, biased
from planted import assert_untouched, snapshot
from vaeprune.surgery import refitting
from vaeprune.surgery.channels import Call
from vaeprune.surgery.curvature import FitRows, Moments, fit_rows, measure
from vaeprune.surgery.probe import Recorder, Subject
from vaeprune.surgery.refitting import Mixture, Refit, Removed, refit

GONE = (1, 4)
FIRST, SECOND, THIRD = "decoder.0.weight", "decoder.2.weight", "decoder.4.weight"


class Case:
    """A decoder, its rows, and fits of what is left of it."""

    def __init__(
        self,
        *decoder: nn.Module,
        rows: int = 300,
        shape: tuple[int, ...] = (5,),
        planted: Callable[[HiddenVAE], None] | None = None,
    ) -> None:
        width = int(torch.tensor(shape).prod())
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(width, 6), nn.Tanh())
        self.vae = HiddenVAE(encoder, 6, nn.Sequential(*decoder), shape)
        if planted is not None:
            planted(self.vae)
        x = torch.rand(rows, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.subject = Subject(self.vae, (x[:2],))
        self.fit: FitRows = fit_rows(self.subject, iter([(x,)]), rows, 8 * width, 0)
        before = Recorder()
        self.subject.run(lambda vae: vae.decode_parameters(*self.fit.all("decode")), before)
        self.read, self.wrote = before.operands, before.results
        calls: list[Call] = [("decode", call) for call in range(len(before.sites))]
        self.moments: Mapping[Call, Moments] = measure(self.subject, self.fit, calls)

    def weight(self, key: str) -> np.ndarray:
        return self.vae.state_dict()[key].numpy()

    def fitted(self, removed: Removed, iterations: int = 6) -> Refit:
        return refit(self.subject, self.fit, self.moments, removed, ("decode",), iterations)


def dense(bias: bool = True, rows: int = 300) -> Case:
    return Case(nn.Linear(LATENTS, 6), nn.Tanh(), nn.Linear(6, 5, bias=bias), rows=rows)


def without(writer: str, reader: str, gone: tuple[int, ...] = GONE, axes: tuple[int, int] = (0, 1), **more) -> Removed:
    return Removed({(writer, axes[0]): frozenset(gone), (reader, axes[1]): frozenset(gone)}, **more)


def lstsq(x: Tensor | np.ndarray, y: Tensor | np.ndarray, ones: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """(O, M) and the bias (O,), by numpy."""
    x, y = np.asarray(x), np.asarray(y)
    if ones:
        x = np.concatenate([x, np.ones_like(x[:, :1])], 1)
    solved = np.linalg.lstsq(x, y, rcond=None)[0].T
    return (solved[:, :-1], solved[:, -1]) if ones else (solved, None)


def assert_close(found: Tensor | np.ndarray, expected: np.ndarray, tolerance: float = 1e-3) -> None:
    """To within the ridge, relative to the largest entry."""
    found = np.asarray(found)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


KEPT = [0, 2, 3, 5]


# ---- dense weights


@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_weight_is_fitted_to_what_the_original_wrote(bias: bool) -> None:
    case = dense(bias)
    found = case.fitted(without(FIRST, SECOND))
    weight, offset = lstsq(case.read[1][:, KEPT], case.wrote[1], bias)
    assert set(found.weights) == {SECOND}
    assert_close(found.weights[SECOND][:, KEPT], weight)
    assert not found.weights[SECOND][:, list(GONE)].any()
    assert found.skipped == {}
    if bias:
        assert_close(found.biases["decoder.2.bias"], offset)
    else:
        assert found.biases == {}


def test_fitted_weights_are_better_than_those_of_before() -> None:
    case = dense()
    found = case.fitted(without(FIRST, SECOND))
    x, y = case.read[1][:, KEPT], case.wrote[1]
    fitted = x @ found.weights[SECOND][:, KEPT].T + found.biases["decoder.2.bias"]
    as_before = x @ torch.tensor(case.weight(SECOND))[:, KEPT].T + torch.tensor(case.weight("decoder.2.bias"))
    assert (fitted - y).square().sum() < 0.5 * (as_before - y).square().sum()


def test_nothing_removed_changes_nothing() -> None:
    found = dense().fitted(Removed({}))
    assert (found.weights, found.biases, found.skipped, found.factors) == ({}, {}, {}, {})


def test_the_model_stays_as_it_is() -> None:
    case = dense()
    before = snapshot(case.vae)
    case.fitted(without(FIRST, SECOND))
    assert_untouched(case.vae, before)


def test_a_weight_is_fitted_on_what_the_pruned_network_reads() -> None:
    """It loses no channel itself; what it reads has changed upstream."""
    case = Case(nn.Linear(LATENTS, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5))
    found = case.fitted(without(FIRST, SECOND))
    assert set(found.weights) == {SECOND, THIRD}
    seen = case.read[1][:, KEPT] @ found.weights[SECOND][:, KEPT].T + found.biases["decoder.2.bias"]
    weight, offset = lstsq(torch.tanh(seen), case.wrote[2], True)
    assert_close(found.weights[THIRD], weight, 2e-2)  # what it reads is nearly dependent, so that the ridge shows
    assert_close(found.biases["decoder.4.bias"], offset, 2e-2)
    better = found.weights[THIRD] - torch.tensor(case.weight(THIRD))
    assert better.abs().max() > 0.05


def test_combinations_are_of_fitted_rows_those_of_channels_that_go_included() -> None:
    case = Case(nn.Linear(LATENTS, 6), nn.Tanh(), nn.Linear(6, 4), nn.Linear(4, 5))
    reader = "decoder.3.weight"
    mixture = Mixture((0, 1, 2, 3), torch.tensor([[1.0, -1.0, 2.0, 0.5], [0.0, 1.0, 1.0, -3.0]]).double())
    alone = case.fitted(without(FIRST, SECOND))
    gone = {**without(FIRST, SECOND).of, **without(SECOND, reader, (2, 3)).of}
    found = case.fitted(Removed(gone, mixed={("decode", 1): mixture}))
    assert_close(found.weights[SECOND], mixture.of(alone.weights[SECOND]).numpy(), 1e-9)
    assert_close(found.biases["decoder.2.bias"], mixture.of(alone.biases["decoder.2.bias"]).numpy(), 1e-9)


def test_a_weight_that_loses_rows_and_columns_is_fitted_in_the_rows_that_stay() -> None:
    case = Case(nn.Linear(LATENTS, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5))
    alone = case.fitted(without(FIRST, SECOND))
    found = case.fitted(Removed({**without(FIRST, SECOND).of, **without(SECOND, THIRD, (0, 2)).of}))
    stay = [1, 3]
    assert_close(found.weights[SECOND][stay], alone.weights[SECOND][stay].numpy(), 1e-9)
    assert_close(found.biases["decoder.2.bias"][stay], alone.biases["decoder.2.bias"][stay].numpy(), 1e-9)
    assert not found.weights[THIRD][:, [0, 2]].any()


def test_a_bias_that_takes_a_constant_over_leaves_what_follows_as_it_was() -> None:
    """The units that go are 1 in every row: the next weight's bias makes up for them, and nothing is left to fit."""

    def saturated(vae: HiddenVAE) -> None:
        biased(vae.decoder[0], *GONE, bias=ABOVE)

    layers = nn.Linear(LATENTS, 6), nn.Sigmoid(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5)
    case = Case(*layers, planted=saturated)
    found = case.fitted(without(FIRST, SECOND), iterations=80)
    seen = case.read[1][:, KEPT] @ found.weights[SECOND][:, KEPT].T + found.biases["decoder.2.bias"]
    assert_close(seen, case.wrote[1].numpy())
    written = torch.tanh(seen) @ found.weights[THIRD].T + found.biases["decoder.4.bias"]
    assert_close(written, case.wrote[2].numpy(), 5e-3)


def test_rows_count_as_much_as_the_loss_depends_on_them() -> None:
    case = Case(nn.Linear(LATENTS, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5))
    found = case.fitted(without(FIRST, SECOND), iterations=80)
    counts = torch.cat(case.moments["decode", 1].squares)
    counts = 0.95 * counts / counts.mean(0) + 0.05
    for output in range(4):
        root = counts[:, output : output + 1].sqrt()
        x = torch.cat([case.read[1][:, KEPT], torch.ones_like(root)], 1)
        expected, _ = lstsq(root * x, root * case.wrote[1][:, output : output + 1], False)
        assert_close(found.weights[SECOND][output, KEPT], expected[0, :-1], 5e-3)
        assert found.biases["decoder.2.bias"][output].item() == pytest.approx(expected[0, -1], rel=5e-3, abs=5e-3)


# ---- combinations and products


def test_a_mixture_writes_combinations_and_its_reader_is_fitted_to_them() -> None:
    case = Case(nn.Linear(LATENTS, 4), nn.Identity(), nn.Linear(4, 5))
    combinations = torch.tensor([[1.0, 0.5, 0, -1], [0, 1, 2, 0.25]], dtype=torch.float64)
    mixture = Mixture((2, 0, 3, 1), combinations)
    assert mixture.kept == [2, 0]
    found = case.fitted(without(FIRST, SECOND, (3, 1), mixed={("decode", 0): mixture}))
    for key, values in (("weight", found.weights[FIRST]), ("bias", found.biases["decoder.0.bias"])):
        before = case.weight(f"decoder.0.{key}")
        expected = np.zeros_like(before)
        expected[[2, 0]] = combinations.numpy() @ before[[2, 0, 3, 1]]
        assert_close(values, expected, 1e-12)
    seen = case.read[0] @ found.weights[FIRST].T + found.biases["decoder.0.bias"]
    weight, offset = lstsq(seen[:, [0, 2]], case.wrote[1], True)
    assert_close(found.weights[SECOND][:, [0, 2]], weight)
    assert_close(found.biases["decoder.2.bias"], offset)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_product_of_low_rank_is_the_best_there_is(rank: int) -> None:
    """Eckart and Young: what is lost are the singular values that are left out."""
    case = dense()
    found = case.fitted(Removed({}, ranks={SECOND: rank}))
    up, down = found.factors[SECOND]
    assert (tuple(up.shape), tuple(down.shape)) == ((5, rank), (rank, 6, 1))
    assert_close(found.weights[SECOND], (up @ down[:, :, 0]).numpy(), 1e-9)
    x, y = case.read[1], case.wrote[1]
    lost = (x @ found.weights[SECOND].T + found.biases["decoder.2.bias"] - y).square().sum()
    values = np.linalg.svd(case.weight(SECOND) @ (x - x.mean(0)).numpy().T, compute_uv=False)
    best = float((values[rank:] ** 2).sum())
    assert best * (1 - 1e-6) <= float(lost) <= 1.05 * best


# ---- what is not fitted, and why


def test_a_weight_that_several_calls_share_is_not_fitted_and_says_so() -> None:
    case = dense()
    found = case.fitted(without(FIRST, SECOND, shared=frozenset({SECOND})))
    assert found.skipped == {SECOND: "it is used several times, or its bias is computed"}
    expected = case.weight(SECOND).copy()
    expected[:, list(GONE)] = 0
    assert np.array_equal(found.weights[SECOND].numpy(), expected)


def test_too_few_rows_are_no_fit_and_say_so() -> None:
    case = dense(rows=4)  # and one of the prior
    found = case.fitted(without(FIRST, SECOND))
    assert found.skipped == {SECOND: "5 rows are too few for 4 inputs"}
    assert np.array_equal(found.weights[SECOND][:, KEPT].numpy(), case.weight(SECOND)[:, KEPT])


def test_more_channels_than_can_be_fitted_are_left_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    case = dense()
    monkeypatch.setattr(refitting, "MOST_FEATURES", 3)
    found = case.fitted(without(FIRST, SECOND))
    assert found.skipped == {SECOND: "its 6 input channels are more than 3"}
    assert np.array_equal(found.weights[SECOND][:, KEPT].numpy(), case.weight(SECOND)[:, KEPT])


# ---- convolutions

CONV = "decoder.3.weight"


def convolutional(padding: int = 1) -> Case:
    size = 4 if padding else 2
    layers = (nn.Linear(LATENTS, 6 * 16), nn.Unflatten(1, (6, 4, 4)), nn.Tanh(), nn.Conv2d(6, 2, 3, padding=padding))
    return Case(*layers, rows=120, shape=(2, size, size))


def gone_from_maps() -> Removed:
    rows = frozenset(16 * channel + place for channel in GONE for place in range(16))
    return Removed({(FIRST, 0): rows, (CONV, 1): frozenset(GONE)})


@pytest.mark.parametrize("padding", [0, 1])
def test_a_convolution_is_fitted_tap_by_tap(padding: int) -> None:
    case = convolutional(padding)
    found = case.fitted(gone_from_maps())
    seen = F.unfold(case.read[1][:, KEPT], 3, padding=padding).transpose(1, 2).flatten(0, 1)
    weight, offset = lstsq(seen, case.wrote[1].flatten(2).transpose(1, 2).flatten(0, 1), True)
    assert_close(found.weights[CONV][:, KEPT].flatten(1), weight)
    assert_close(found.biases["decoder.3.bias"], offset)
    assert not found.weights[CONV][:, list(GONE)].any()


@pytest.mark.parametrize("padding", [0, 1])
def test_a_convolution_of_too_many_taps_is_fitted_channel_by_channel(
    padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels that go become combinations of those that stay; with zero padding no constant may take part."""
    case = convolutional(padding)
    monkeypatch.setattr(refitting, "MOST_FEATURES", 20)
    found = case.fitted(gone_from_maps())
    maps = case.read[1].flatten(2).transpose(1, 2).flatten(0, 1)
    combination, offset = lstsq(maps[:, KEPT], maps, padding == 0)
    whole = case.weight(CONV)
    assert_close(found.weights[CONV][:, KEPT], np.einsum("ocij,ck->okij", whole, combination))
    if offset is not None:
        expected = case.weight("decoder.3.bias") + np.einsum("ocij,c->o", whole, offset)
        assert_close(found.biases["decoder.3.bias"], expected)
    else:
        assert np.array_equal(found.biases["decoder.3.bias"].numpy(), case.weight("decoder.3.bias"))
