"""Linear links: where they are found and where not, and what their best basis costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidden_models import LATENTS, HiddenVAE, sets_of
from vaeprune.adapters import batches_for
from vaeprune.surgery.curvature import FitRows, Moments, fit_rows, measure
from vaeprune.surgery.hidden import Hidden, examine
from vaeprune.surgery.links import best_basis, linear_link
from vaeprune.surgery.refitting import Mixture, Removed, refit
from vaeprune.surgery.regression import as_matrix, rank_costs

IMAGE = (2, 6, 6)


class Padded(nn.Module):
    """Two convolutions with a pad, a crop and a scale between, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(2 * F.pad(self.first(x), (1, 0, 2, 1))[:, :, 1:])).flatten(1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return torch.tanh(self.third(h + self.second(h))).flatten(1)


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return torch.tanh(self.second(h) + self.third(h))


class Rotated(nn.Module):
    """Channels change places on the way: linear, but not the same for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(self.first(x) * torch.tensor([1.0, 2.0, 3.0, 4.0]).to(x)))


def convolutions(*between: nn.Module) -> HiddenVAE:
    encoder = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *between, nn.Conv2d(4, 3, 3), nn.Tanh(), nn.Flatten())
    return HiddenVAE(encoder, 48, nn.Sequential(nn.Linear(LATENTS, 72), nn.Unflatten(1, IMAGE)), IMAGE)


def found_links(vae: HiddenVAE) -> tuple[Hidden, dict[str, tuple[str, int]]]:
    hidden = examine(vae, sets_of(vae))
    found = {}
    for layer in hidden.layers:
        writer = linear_link(hidden.subject, hidden.channels, layer)
        if writer is not None:
            found[hidden.channels.site(writer).key] = writer
    return hidden, found


LINKED = {
    "convolutions": (convolutions, "encoder.0.weight"),
    "dense layers": (lambda: HiddenVAE(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 6), nn.Tanh())), "encoder.0.weight"),
    "pad, crop and scale": (
        lambda: HiddenVAE(Padded(), 60, nn.Sequential(nn.Linear(LATENTS, 72), nn.Unflatten(1, IMAGE)), IMAGE),
        "encoder.first.weight",
    ),
    "flattened maps": (
        lambda: HiddenVAE(
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 6), nn.Tanh()),
            6, nn.Sequential(nn.Linear(LATENTS, 72), nn.Unflatten(1, IMAGE)), IMAGE,
        ),
        "encoder.0.weight",
    ),
    "two readers": (lambda: HiddenVAE(TwoReaders(), 3), "encoder.first.weight"),
    "the first layer of a decoder": (
        lambda: HiddenVAE(decoder=nn.Sequential(nn.Linear(LATENTS, 4), nn.Linear(4, 5))), "decoder.0.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LINKED.values(), ids=list(LINKED))
def test_a_link_is_found(case: tuple) -> None:
    build, key = case
    assert key in found_links(build())[1]


def test_a_linear_map_of_places_is_no_obstacle() -> None:
    encoder = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(4, 3, 3), nn.Tanh(), nn.Flatten())
    vae = HiddenVAE(encoder, 3, nn.Sequential(nn.Linear(LATENTS, 72), nn.Unflatten(1, IMAGE)), IMAGE)
    assert "encoder.0.weight" in found_links(vae)[1]


UNLINKED = {
    "relu": lambda: convolutions(nn.ReLU()),
    "tanh": lambda: convolutions(nn.Tanh()),
    "leaky relu": lambda: convolutions(nn.LeakyReLU(0.9)),
    "prelu": lambda: convolutions(nn.PReLU()),
    "batch norm": lambda: convolutions(nn.BatchNorm2d(4)),
    "max pooling": lambda: convolutions(nn.MaxPool2d(3, 1, 1)),
    "an own scale each": lambda: HiddenVAE(Rotated()),
}


@pytest.mark.parametrize("build", UNLINKED.values(), ids=list(UNLINKED))
def test_no_link_is_found(build) -> None:  # type: ignore[no-untyped-def]
    keys = found_links(build())[1]
    assert "encoder.0.weight" not in keys
    assert "encoder.first.weight" not in keys


def test_a_residual_sum_is_no_link() -> None:
    vae = HiddenVAE(Residual(), 108, nn.Sequential(nn.Linear(LATENTS, 72), nn.Unflatten(1, IMAGE)), IMAGE)
    keys = found_links(vae)[1]
    assert "encoder.first.weight" not in keys
    assert "encoder.second.weight" not in keys


# ---- the best basis


def measured(vae: HiddenVAE, hidden: Hidden) -> tuple[FitRows, dict[tuple[str, int], Moments]]:
    sets = sets_of(vae, count=800)
    fit = fit_rows(hidden.subject, batches_for(vae, sets.calibrate), 400, 1, 0)
    calls = [(side, n) for side, sites in hidden.channels.sites.items() for n in range(len(sites))]
    return fit, measure(hidden.subject, fit, calls)


def linked(vae: HiddenVAE):  # type: ignore[no-untyped-def]
    hidden, links = found_links(vae)
    key, writer = next(iter(links.items()))
    layer = next(g for g in hidden.layers if writer in g[0].writes)
    fit, moments = measured(vae, hidden)
    basis = best_basis(hidden.subject, hidden.channels, layer, writer, moments)
    assert basis is not None
    return hidden, layer, writer, fit, moments, basis, key


@pytest.mark.parametrize("name", ["dense layers", "convolutions", "two readers"])
def test_predicted_costs_are_the_best_that_any_combinations_reach(name: str) -> None:
    """½ tr(F (1 − UV) S (1 − UV)ᵀ): no lower for other combinations of as many, and reached by these."""
    hidden, layer, writer, _, moments, basis, key = linked(LINKED[name][0]())
    site, seen = hidden.channels.site(writer), moments[writer]
    weight = as_matrix(hidden.subject.weight(key), site).flatten(1)
    covariance = weight @ seen.covariance() @ weight.T
    if not all(hidden.channels.site(call).holds_constant for call in layer[0].reads):
        mean = weight @ (seen.total / seen.count) + hidden.subject.weight(site.bias)
        covariance = covariance + torch.outer(mean, mean)
    order = list(basis.channels)
    fisher, covariance = seen.fisher[order][:, order], covariance[order][:, order]

    def cost(rows: Tensor) -> float:
        """The cost of keeping only these combinations, the way back being the best there is."""
        back = covariance @ rows.T @ torch.linalg.inv(rows @ covariance @ rows.T)
        missing = torch.eye(len(covariance), dtype=torch.float64) - back @ rows
        return 0.5 * float((fisher @ missing @ covariance * missing).sum())

    size = len(layer)
    assert len(basis.order.costs) == size - 1
    generator = torch.Generator().manual_seed(0)
    for gone, predicted in enumerate(basis.order.costs, 1):
        own = basis.combinations[: size - gone]
        assert predicted == pytest.approx(cost(own), rel=1e-4, abs=1e-7)
        for step in (1.0, 0.1, 0.01):
            other = own + step * torch.randn(own.shape, generator=generator, dtype=torch.float64)
            assert cost(other) >= predicted * (1 - 1e-6) - 1e-9


@pytest.mark.parametrize("bias", [True, False], ids=["its bias takes the mean over", "no bias takes the mean over"])
def test_costs_are_of_what_is_written_less_its_mean_where_a_bias_takes_that_over(bias: bool) -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 6, bias=bias), nn.Tanh()))
    with torch.no_grad():
        vae.encoder[0].bias.copy_(torch.tensor([1.0, -0.5, 0.2, 0.0]))
    hidden, _, writer, fit, moments, basis, _ = linked(vae)
    with torch.no_grad():
        written = vae.encoder[0](fit.all("encode")[0])[:, list(basis.channels)]
    centred = written - written.mean(0) if bias else written
    fisher = moments[writer].fisher[list(basis.channels)][:, list(basis.channels)]
    expected = rank_costs(torch.eye(4).double(), centred.T @ centred / len(centred), fisher)
    assert basis.order.groups == (3, 2, 1)
    assert basis.order.costs == pytest.approx(expected[[3, 2, 1]].tolist(), rel=1e-3)
    assert hidden.channels.site(writer).bias == "encoder.0.bias"


def test_combinations_are_of_unit_size_on_the_data() -> None:
    hidden, _, writer, _, moments, basis, key = linked(LINKED["dense layers"][0]())
    weight = hidden.subject.weight(key)
    covariance = weight @ moments[writer].covariance() @ weight.T
    order = list(basis.channels)
    found = basis.combinations @ covariance[order][:, order] @ basis.combinations.T
    assert torch.allclose(found, torch.eye(len(order)).double(), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["dense layers", "convolutions", "pad, crop and scale", "flattened maps", "two readers"]
)
def test_a_change_of_basis_alone_changes_nothing_that_is_computed(name: str) -> None:
    """All combinations kept: every reader takes the way back, so latents are what they were."""
    vae = LINKED[name][0]()
    hidden, layer, writer, fit, moments, basis, key = linked(vae)
    mixed = {writer: Mixture(basis.channels, basis.combinations)}
    found = refit(hidden.subject, fit, moments, Removed({}, frozenset(), mixed), iterations=30)
    assert not found.skipped
    state = {key: value.clone() for key, value in vae.state_dict().items()}
    x = torch.rand(20, *vae.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        before = vae.encode(x).mean
        vae.load_state_dict(state | found.weights | found.biases)
        assert torch.allclose(vae.encode(x).mean, before, atol=2e-3 * float(before.abs().max()))
    for changed in (key, *(hidden.channels.site(call).key for call in layer[0].reads)):
        assert float((found.weights[changed] - state[changed]).abs().max()) > 1e-3


def test_too_few_rows_give_no_basis() -> None:
    vae = LINKED["convolutions"][0]()
    hidden, links = found_links(vae)
    writer = links["encoder.0.weight"]
    layer = next(g for g in hidden.layers if writer in g[0].writes)
    seen = measured(vae, hidden)[1]
    seen[writer].count = 2 * len(seen[writer].gram) - 1
    assert best_basis(hidden.subject, hidden.channels, layer, writer, seen) is None


def test_without_moments_there_is_no_basis() -> None:
    vae = LINKED["convolutions"][0]()
    hidden, links = found_links(vae)
    writer = links["encoder.0.weight"]
    layer = next(g for g in hidden.layers if writer in g[0].writes)
    seen = measured(vae, hidden)[1]
    seen[writer].gram = None
    assert best_basis(hidden.subject, hidden.channels, layer, writer, seen) is None


def test_a_mixture_writes_combinations_where_the_first_channels_were() -> None:
    mixture = Mixture((2, 0, 1), torch.tensor([[1.0, 2.0, 0.0]]))
    assert mixture.kept == [2]
    rows = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    assert torch.equal(mixture.of(rows), torch.tensor([[0.0, 0.0], [0.0, 0.0], [5.0, 50.0]]))
    assert torch.equal(mixture.of(rows[:, 0]), torch.tensor([0.0, 0.0, 5.0]))
