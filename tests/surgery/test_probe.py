"""Subjects that read large weights where the model has them, and runs in which nothing is multiplied twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from planted import MapVAE, PlainVAE, assert_same_but_for_the_removed, assert_untouched, planned, rows, snapshot
from vaeprune.errors import TraceError
from vaeprune.posterior import Posterior
from vaeprune.surgery import probe
from vaeprune.surgery.cut import cut
from vaeprune.surgery.probe import Recorder, Replayed, Subject
from vaeprune.surgery.watching import CannotShare, Run, Watcher

EXAMPLE = (rows(2, (5,)),)


@pytest.fixture
def _all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix counts as large, so that models of a few numbers are shared."""
    monkeypatch.setattr(probe, "SHARED_FROM", 1)


class Encodes(PlainVAE):
    """Whose encoder does something more to the hidden units."""

    def __init__(self, more: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.more = more

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        h = self.more(self, self.hidden(x))
        return Posterior(self.mean(h), self.logvar(h))


@pytest.mark.usefixtures("_all_large")
def test_matrices_stay_where_they_are_and_all_else_is_float64() -> None:
    vae = PlainVAE(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)))
    subject = Subject(vae, EXAMPLE, sharing=True)
    own = dict(subject.vae.network.named_parameters())
    shared = {key for key, p in vae.named_parameters() if p.data_ptr() == own[key].data_ptr()}
    assert shared == subject.shared == {key for key, p in vae.named_parameters() if p.dim() > 1}
    assert {own[key].dtype for key in shared} == {torch.float32}
    assert {p.dtype for key, p in own.items() if key not in shared} == {torch.float64}
    assert subject.vae.decoder[1].running_mean.dtype == torch.float64
    seen = Recorder()
    posterior = subject.run(lambda m: m.encode(*subject.example), seen)
    assert {t.dtype for t in (*seen.operands, *seen.results, posterior.mean)} == {torch.float64}
    assert torch.allclose(posterior.mean.float(), vae.encode(*EXAMPLE).mean, rtol=1e-5, atol=1e-6)


def test_small_matrices_are_not_shared() -> None:
    vae = PlainVAE()
    subject = Subject(vae, EXAMPLE, sharing=True)
    assert not subject.shared
    assert subject.vae.body.weight.dtype == torch.float64
    assert subject.vae.body.weight.data_ptr() != vae.body.weight.data_ptr()


@pytest.mark.usefixtures("_all_large")
def test_an_embedding_that_its_own_function_changes_is_not_shared() -> None:
    vae = PlainVAE()
    vae.classes = nn.Embedding(3, 5, max_norm=0.1)
    assert not Subject(vae, EXAMPLE, sharing=True).shared
    vae.classes.max_norm = None
    assert "classes.weight" in Subject(vae, EXAMPLE, sharing=True).shared


@pytest.mark.parametrize(
    "build",
    [
        PlainVAE,
        lambda: PlainVAE(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 5))),
        lambda: PlainVAE(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 5))),
        lambda: Encodes(lambda m, h: h + h @ m.body.weight @ m.body.weight.T),
        MapVAE,
    ],
    ids=["linear", "batch norm", "weight norm", "a weight read by a product", "convolutions"],
)
def test_a_plan_is_the_same_whether_weights_are_shared_or_copied(
    build: Callable[[], PlainVAE | MapVAE], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = build()
    copied, before = planned(vae, [1]), snapshot(vae)
    monkeypatch.setattr(probe, "SHARED_FROM", 1)
    shared = planned(vae, [1])
    assert_untouched(vae, before)
    assert shared.to_json() == copied.to_json()
    assert shared.bias_changes.keys() == copied.bias_changes.keys()
    for key, change in copied.bias_changes.items():
        assert torch.equal(shared.bias_changes[key], change)
    assert_same_but_for_the_removed(vae, cut(vae, shared), shared, tolerance=1e-5)


@pytest.mark.usefixtures("_all_large")
def test_weights_that_channels_only_pass_are_shared_too() -> None:
    """A depthwise kernel is a matrix in float32, and what passes it is in float64."""
    vae = MapVAE(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 2, 1)))
    subject = Subject(vae, (rows(2, (2, 4, 4)),), sharing=True)
    assert "decoder.0.weight" in subject.shared
    z = rows(2, (3, 4, 4))
    found = subject.run(lambda m: m.decode(z.double()), Watcher())
    assert torch.allclose(found.float(), vae.decode(z), atol=1e-6)


def test_a_copy_is_in_eval_mode_and_takes_no_gradients_whatever_the_model_is_in() -> None:
    vae = PlainVAE(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 5)))
    vae.train()
    for options in ({}, {"double": False}, {"sharing": True}):
        subject = Subject(vae, EXAMPLE, **options)
        assert not any(module.training for module in subject.vae.network.modules())
        assert not any(p.requires_grad for p in subject.vae.network.parameters())
    assert all(module.training for module in vae.modules())
    assert all(p.requires_grad for p in vae.parameters())


class Pairs(PlainVAE):
    """Multiplies latents with each other, after its decoder has run, or in a module of it."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside, self.pairs = inside, nn.Bilinear(4, 4, 5)

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        x = self.decoder(z)
        return x + (self.pairs(z, z) if self.inside else nn.functional.bilinear(z, z, self.pairs.weight))


@pytest.mark.parametrize(("inside", "where"), [(True, "pairs"), (False, "the model")])
def test_what_is_not_understood_is_placed_in_the_module_that_called_it(inside: bool, where: str) -> None:
    with pytest.raises(
        TraceError, match=rf"goes through bilinear with pairs\.weight.* in {where}, which mixes channels"
    ):
        planned(Pairs(inside), [1])


def _masked(vae: nn.Module, h: Tensor) -> Tensor:
    """A weight is masked in place, as in masked convolutions; the model's own has not been masked yet."""
    vae.body.weight.data.mul_(torch.ones_like(vae.body.weight).triu())
    return h


def _drifting(vae: nn.Module, h: Tensor) -> Tensor:
    with torch.no_grad():
        vae.body.weight += 0.0 * h.mean()
    return h


def _several(vae: nn.Module, h: Tensor) -> Tensor:
    """As optimisers change their weights, many at once."""
    more = h.clone()
    torch._foreach_add_([more, vae.body.weight], 0.0)
    return more


def _written(vae: nn.Module, h: Tensor) -> Tensor:
    torch.add(vae.body.weight, 0.0, out=vae.body.weight)
    return h


@pytest.mark.usefixtures("_all_large")
@pytest.mark.parametrize("more", [_masked, _drifting, _several, _written])
def test_a_model_that_writes_to_its_weights_is_probed_in_a_copy(more: Callable[[nn.Module, Tensor], Tensor]) -> None:
    vae = Encodes(more)
    before = snapshot(vae)
    subject = Subject(vae, EXAMPLE, sharing=True)
    with pytest.raises(CannotShare, match="changes a weight"):
        subject.run(lambda m: m.encode(*subject.example), Watcher())
    assert_untouched(vae, before)
    found = probe.on_shared_weights(vae, EXAMPLE, lambda s: s.run(lambda m: m.encode(*s.example).mean, Watcher()))
    assert found.dtype == torch.float64
    assert_untouched(vae, before)


@pytest.mark.usefixtures("_all_large")
def test_a_model_that_leaves_float64_is_probed_in_a_copy() -> None:
    vae = Encodes(lambda m, h: h.to(m.mean.weight.dtype))
    subject = Subject(vae, EXAMPLE, sharing=True)
    with pytest.raises(CannotShare, match=r"mean\.weight: does not read float64"):
        subject.run(lambda m: m.encode(*subject.example), Watcher())
    assert planned(vae, [2]).removed_latents == [2]


@pytest.mark.usefixtures("_all_large")
def test_chance_shows_though_nothing_is_multiplied_twice() -> None:
    with pytest.raises(TraceError, match="its means change between two identical calls in eval mode"):
        planned(Encodes(lambda _m, h: h + 1e-3 * torch.randn_like(h)), [1])


class _Counted(Replayed):
    """How many calls were computed again."""

    computed = 0

    def compute(self, call: int, site: object, run: Run) -> Tensor:
        known = self._known(call, site, run)
        self.computed += known is None
        return run() if known is None else known


def test_what_is_known_is_not_computed_again_and_what_is_not_is() -> None:
    vae = PlainVAE()
    subject, seen = Subject(vae, EXAMPLE), Recorder()
    row = subject.example[0][:1]
    first = subject.run(lambda m: m.encode(row), seen)

    def again(x: Tensor, rounding: float = 0.0) -> tuple[Posterior, int]:
        replayed = _Counted(seen, rounding)
        return subject.run(lambda m: m.encode(x), replayed), replayed.computed

    same, computed = again(row.repeat(3, 1))
    assert computed == 0
    assert torch.equal(same.mean, first.mean.repeat(3, 1))
    other = row + 1e-7
    moved, computed = again(other)
    assert computed == 3
    assert torch.equal(moved.mean, subject.run(lambda m: m.encode(other).mean, Watcher()))
    assert again(other, rounding=1e-5)[1] == 0
    with torch.no_grad():
        subject.vae.mean.bias += 1
    changed, computed = again(row)
    assert computed == 1
    assert torch.allclose(changed.mean, first.mean + 1)
    assert again(row * torch.nan)[1] == 3
